"""Papers' experiments with the papers' own hyperparameters, one file a paper.

    python -m gptjax STAGE --config configs/papers/NAME.py:VARIANT --workdir RUN

A variant is called after its stage: `sft`, `reward`, `ppo`, … `,tiny` behind it keeps
the algorithm (epochs, minibatches of a rollout, clips, KL, normalisers, warm-up) and
fits the rest to the model of configs/sums.py: data, lengths, batch and learning rate.
So a paper's commands run on two cores too, with `,tiny` behind each variant and, in
place of the pretraining of runs/base and of what a paper takes for granted,

    python -m gptjax task     --config configs/sums.py     --workdir runs/sums
    python -m gptjax pretrain --config configs/sums.py     --workdir runs/sums
    python -m gptjax sft      --config configs/sums.py:sft --workdir runs/sums_sft
    python -m gptjax select   --config configs/select.py   --workdir runs/select

the last for comparisons: of runs/sums_sft, or with --config.start.run of the paper's
own run of sft.

What holds for all of them, and no paper's docstring says again:

- What a paper does not say is the default of configs/common.py.
- The text is the user's own, as files of the names below, and so are the models:
  `start.run` decides size and positions. How it fits a machine (mesh, accumulation,
  loss_chunk, the model's dtype and remat, which flags can change) is too.
- `sft` packs conversations into rows, and `train.batch_size` counts rows.
- Adam is AdamW without decay. Gradients are clipped to a norm of 1 where the paper
  says nothing of it. A warm-up rises from 1 / (steps + 1) of the peak.
- Of a file of prompts a tenth is held out for validation and a tenth for `eval`, of
  preferences what `reward` and `preference` say: a step count that the papers' sizes
  give is an epoch of files as large as theirs after that.
- A verifier of `task.path` wants the reply to be the answer, character by character;
  of replies that reason first, a function in `task.rewards` has to find the answer.
"""

from configs import common, sums
from gptjax.core.console import UserError

BASE = 'runs/base'  # a pretrained run
SFT = 'runs/sft'  # a fine-tuned one, where the paper takes it from elsewhere
DEMONSTRATIONS = 'demonstrations.jsonl'  # {"messages": […]}
COMPARISONS = 'comparisons.jsonl'  # {"prompt": […], "chosen": "…", "rejected": "…"}
PROMPTS = 'prompts.jsonl'  # {"prompt": "…"}, for a verifier with "answer"

TINY_STARTS = {BASE: 'runs/sums', SFT: 'runs/sums_sft'}
TINY_COMPARISONS = 'runs/select/selected/pairs.jsonl'
TINY_REPLIES = 1024  # in a rollout, at most
TINY_ROLLOUTS = 60
TINY_TOKENS = 6  # of a reply, a sum


def chosen(variants: dict, variant: str):
    """The config of a paper's variant, `NAME` or `NAME,tiny`.

    Args:
        variants: from names to functions that make a config.
        variant: what stands behind the colon.

    Raises:
        UserError: there is none of that name.
    """
    name, comma, size = variant.partition(',')
    if name not in variants or (comma and size != 'tiny'):
        raise UserError(
            f'--config: the paper has no variant {variant!r}: use '
            f'{", ".join(variants)}, or one of them with ,tiny'
        )
    config = variants[name]()
    return tiny(config) if comma else config


# ---- what the papers' stages share


def base(start: str):
    """A stage after pretraining: Adam, a constant rate, and its last weights go on."""
    config = common.base()
    config.start = common.start_section(start)
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    config.data.clean = ()  # numbers are not to be masked
    config.optim.update(name='adamw', schedule='constant', warmup_steps=0)
    config.checkpoint.update(keep=1, keep_best=0)
    return config


def sft(start: str = BASE):
    """Fine-tuning on demonstrations."""
    config = base(start)
    config.sft = common.sft_section()
    config.dialogue = common.dialogue_section(
        demonstrations=common.source('chat', DEMONSTRATIONS)
    )
    return config


def reward(start: str):
    """A reward model of comparisons, by the plain pairwise loss."""
    config = base(start)
    config.reward = common.reward_section()
    config.reward.update(preferences=COMPARISONS, centring=0.0)
    return config


def policy(start: str, problems: int):
    """A policy on prompts, rewarded by the task's verifier."""
    config = base(start)
    config.task = common.task_section()
    config.task.update(path=PROMPTS, problems=problems)
    config.policy = common.policy_section()
    return config


def rewarded_by(run: str) -> dict:
    """The section `task.rewards` with the reward model of a run alone."""
    return dict(model=common.reward_part('model', run=run))


# ---- the same on sums


def tiny(config):
    """Fits a paper's config to a model of sums, in place; returns it."""
    config.start.run = TINY_STARTS.get(config.start.run, config.start.run)
    for section, fit in TINY.items():
        if section in config:
            fit(config)
    return config


def _sft(config):
    config.dialogue = common.dialogue_section(
        sums=common.source('chat', sums.DEMONSTRATIONS)
    )
    config.optim.learning_rate = 1e-3
    config.train.update(batch_size=64, eval_every=100)
    config.checkpoint.every = 100


def _reward(config):
    config.reward.preferences = TINY_COMPARISONS
    config.optim.learning_rate = 1e-3
    config.train.update(num_steps=60, batch_size=64, eval_every=15)
    config.checkpoint.every = 15


def _preference(config):
    config.preference.path = TINY_COMPARISONS
    config.optim.learning_rate = 3e-5
    config.train.update(batch_size=32, eval_every=50)
    config.checkpoint.every = 50


def _task(config):
    rewards = config.task.rewards
    config.task = common.task_section()
    config.task.rewards = rewards


def _policy(config):
    """As many updates of a rollout as the paper's; of fewer replies, if many."""
    policy, train = config.policy, config.train
    less = max(1, policy.prompts * policy.replies // TINY_REPLIES)
    replies = policy.prompts * policy.replies // less
    train.batch_size //= less
    updates = policy.epochs * replies // train.batch_size
    policy.update(prompts=policy.prompts // less, max_tokens=TINY_TOKENS, slots=128)
    policy.overlong_buffer = min(policy.overlong_buffer, 1)
    config.optim.learning_rate = 1e-4
    train.update(num_steps=TINY_ROLLOUTS * updates, eval_every=5 * updates)
    config.checkpoint.every = 5 * updates


def _ppo(config):
    config.ppo.ptx_run = TINY_STARTS.get(config.ppo.ptx_run, config.ppo.ptx_run)


def _select(config):
    config.select.update(problems=2000, max_tokens=TINY_TOKENS)


def _best_of(config):
    config.best_of.update(samples=64, max_tokens=TINY_TOKENS)


def _parts(config):
    for part in config.parts.values():
        tiny(part)


TINY = dict(
    sft=_sft,
    reward=_reward,
    preference=_preference,
    task=_task,
    policy=_policy,
    ppo=_ppo,
    select=_select,
    best_of=_best_of,
    parts=_parts,
)
