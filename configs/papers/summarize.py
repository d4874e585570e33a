"""Stiennon et al. 2020, "Learning to summarize from human feedback", arXiv 2009.01325:
the 1.3B models on TL;DR.

    c=configs/papers/summarize.py
    python -m gptjax pretrain --config configs/gpt3.py:xl --workdir runs/base
    python -m gptjax sft    --config $c:sft    --workdir runs/summarize_sft
    python -m gptjax reward --config $c:reward --workdir runs/summarize_reward
    python -m gptjax ppo    --config $c:ppo    --workdir runs/summarize_ppo

Each variant takes `,tiny`.

From the paper, appendix B.1: `sft` has one epoch, a learning rate of 6.35e-5 with a
cosine schedule, batch size 128; `reward` one epoch, 1.5e-5, cosine, batch size 64; PPO
a value network initialised from the reward model, gamma 1, lambda 0.95, 4 epochs over
each batch of rollouts, a learning rate of 1.5e-5 that falls linearly, a KL coefficient
of 0.05, batch size 512, a million episodes. Section 3.2: 123,169 posts, summaries of at
most 48 tokens. README.md of the authors' code (openai/summarize-from-feedback): 64,832
comparisons of TL;DR.

Read at the source: all of these, in the text of the paper and in the authors' code,
which samples and evaluates but does not train.

Known departures:

- The text is the user's own: demonstrations.jsonl with posts and summaries,
  prompts.jsonl with posts, comparisons.jsonl. The paper's data is public
  (openai/summarize-from-feedback) and is not downloaded. The paper's prompt is one
  padded string, here it is the message of a chat.
- The reward is not shifted to 0 on reference summaries. The reward model has one seed;
  the paper chooses among 3 to 10.
- The paper does not say: where the cosine ends (here at 0), whether a batch of rollouts
  is split into minibatches (here it is not), the clips of ratio and value, the
  coefficient of the value loss, the temperature of rollouts, Adam's constants.
"""

from configs import common, papers

RUNS = 'runs/summarize'


def get_config(variant: str = 'sft'):
    return papers.choose_variant(dict(sft=sft, reward=reward, ppo=ppo), variant)


def sft():
    config = papers.sft()
    config.sft.epochs = 1.0
    config.optim.update(learning_rate=6.35e-5, schedule='cosine')
    config.train.batch_size = 128
    return config


def reward():
    config = papers.reward(f'{RUNS}_sft')
    config.optim.update(learning_rate=1.5e-5, schedule='cosine')
    # 64 pairs of two summaries
    config.train.update(num_steps=64_832 // 64, batch_size=128)
    return config


def ppo():
    config = papers.policy(f'{RUNS}_sft', problems=123_169)
    config.task.rewards = papers.rewarded_by(f'{RUNS}_reward')
    config.policy.update(prompts=512, replies=1, epochs=4, max_tokens=48)
    config.policy.update(kl_reward=0.05, kl_estimator='k1')
    config.ppo = common.ppo_section()
    config.ppo.update(critic='network', critic_run=f'{RUNS}_reward')
    config.ppo.update(gamma=1.0, lam=0.95)
    config.optim.update(learning_rate=1.5e-5, schedule='linear')
    # 1,953 rollouts of 4 updates
    config.train.update(num_steps=1_000_000 // 512 * 4, batch_size=512)
    return config
