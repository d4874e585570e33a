"""Experiments of papers with the papers' own hyperparameters, one file per paper.

    python -m gptjax STAGE --config configs/papers/NAME.py:VARIANT --workdir RUN

A variant has the name of its stage: `sft`, `reward`, `ppo`, … With `,tiny` after it,
the algorithm stays (epochs, minibatches per rollout, clips, KL, normalisers, warm-up),
and data, lengths, batch size and learning rate fit the small model of configs/sums.py.
So a paper's commands run on two cores as well: add `,tiny` to each variant, and replace
the pretraining of runs/base, and the runs that a paper takes from elsewhere, by

    python -m gptjax task     --config configs/sums.py     --workdir runs/sums
    python -m gptjax pretrain --config configs/sums.py     --workdir runs/sums
    python -m gptjax sft      --config configs/sums.py:sft --workdir runs/sums_sft
    python -m gptjax select   --config configs/select.py   --workdir runs/select

The last command makes comparisons from replies of runs/sums_sft, or of the paper's own
run of sft with --config.start.run.

Each file says which numbers are from which section, table or script, and what was read
there or written from memory. This holds for all of them:

- Where a paper does not give a value, the default of configs/common.py is used.
- The data is the user's own, in files with the names below. The models are as well:
  `start.run` decides their size and positions. The fields that fit a run to a machine
  (mesh, accumulation, loss_chunk, dtype, remat) are flags.
- `sft` packs conversations into rows, and `train.batch_size` counts rows.
- Adam is AdamW without weight decay, and gradients are clipped to a norm of 1, unless
  the paper says otherwise. A warm-up rises from 1 / (steps + 1) of the peak.
- A tenth of a file of prompts is held out for validation and another tenth for `eval`;
  for preferences, the sections `reward` and `preference` say how much. Where the number
  of steps is computed from the size of the paper's data, it is one epoch if your file
  has that much left for training.
- The verifier of `task.path` wants the reply to equal the answer, character by
  character. If replies reason first, a function in `task.rewards` has to extract the
  answer.
"""

from configs import common, sums
from gptjax.core.console import UserError

BASE = 'runs/base'  # a pretrained run
SFT = 'runs/sft'  # a fine-tuned run, where the paper takes one from elsewhere
DEMONSTRATIONS = 'demonstrations.jsonl'  # {"messages": […]}
COMPARISONS = 'comparisons.jsonl'  # {"prompt": […], "chosen": "…", "rejected": "…"}
PROMPTS = 'prompts.jsonl'  # {"prompt": "…"}; a verifier also needs "answer"

TINY_STARTS = {BASE: 'runs/sums', SFT: 'runs/sums_sft'}
TINY_COMPARISONS = 'runs/select/selected/pairs.jsonl'
TINY_REPLIES = 1024  # maximum replies in a rollout
TINY_ROLLOUTS = 60
TINY_TOKENS = 6  # maximum tokens of a reply, which is a sum


def choose_variant(variants: dict, variant: str):
    """The config of a paper's variant, `NAME` or `NAME,tiny`.

    Args:
        variants: maps names to functions that make a config.
        variant: the text after the colon of `--config`.

    Raises:
        UserError: the paper has no variant of that name.
    """
    name, comma, size = variant.partition(',')
    if name not in variants or (comma and size != 'tiny'):
        raise UserError(
            f'--config: the paper has no variant {variant!r}: use '
            f'{", ".join(variants)}, or one of them with ,tiny'
        )
    config = variants[name]()
    return tiny(config) if comma else config


# ---- settings that the papers' stages share


def base(start: str):
    """A stage after pretraining: Adam, a constant learning rate, the last weights."""
    config = common.base()
    config.start = common.start_section(start)
    config.chat.template = 'turns'
    config.data.context = 0  # the context of the model
    config.data.clean = ()  # cleaning would mask numbers
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
    """A reward model trained on comparisons by the pairwise loss, without centring."""
    config = base(start)
    config.reward = common.reward_section()
    config.reward.update(preferences=COMPARISONS, centring=0.0)
    return config


def policy(start: str, problems: int):
    """A policy trained on prompts; the reward is the task's verifier."""
    config = base(start)
    config.task = common.task_section()
    config.task.update(path=PROMPTS, problems=problems)
    config.policy = common.policy_section()
    config.policy.missing_eos_penalty = 0.0  # no paper here has one
    return config


def rewarded_by(run: str) -> dict:
    """The section `task.rewards` with one reward, the reward model of a run."""
    return dict(model=common.reward_part('model', run=run))


# ---- the same algorithms on sums


def tiny(config):
    """Changes a paper's config in place so that it fits a model of sums; returns it."""
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
    """Divides the replies and the batch by one number: as many updates a rollout."""
    policy, train = config.policy, config.train
    divisor = max(1, policy.prompts * policy.replies // TINY_REPLIES)
    replies = policy.prompts * policy.replies // divisor
    train.batch_size //= divisor
    updates = policy.epochs * replies // train.batch_size
    policy.update(prompts=policy.prompts // divisor, max_tokens=TINY_TOKENS, slots=128)
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
