"""Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open
Language Models", arXiv 2402.03300: GRPO with outcome supervision.

    c=configs/papers/deepseekmath.py
    python -m gptjax pretrain --config configs/llama.py:2-7B --workdir runs/base
    python -m gptjax sft    --config $c:sft    --workdir runs/deepseekmath_sft
    python -m gptjax reward --config $c:reward --workdir runs/deepseekmath_reward
    python -m gptjax grpo   --config $c:grpo   --workdir runs/deepseekmath_grpo

Each variant takes `,tiny`.

From the paper, section 3.2: `sft` takes 500 steps of 256 rows of 4K tokens, with a
constant learning rate of 5e-5. Section 4.2: the reward model's learning rate is 2e-5;
GRPO has a learning rate of 1e-6, a KL coefficient of 0.04, 64 outputs per question of
at most 1,024 tokens, a batch of 1,024, one update after each rollout, 144,000
questions. Section 4.1: the advantage is (r - mean) / std, each reply has the same
weight, and the KL in the loss is k3, q / p - 1 - ln(q / p) (equation 4). Its gradient
is that of KL(q, p); the run warns of this (gptjax/post/objectives/kl.py).

Read at the source: sections 3.2 and 4.2. From memory: section 4.1. The authors'
repository (deepseek-ai/DeepSeek-Math) has no training code.

Known departures:

- A Llama 2 of 7B replaces DeepSeekMath-Base, which was trained on mathematics and
  code. Questions and solutions are the user's own.
- Only outcomes are rewarded. Process supervision (4.1.3) and the reward model and
  reference policy that are updated repeatedly (4.1.4) are not implemented.
- The batch of 1,024 is read as outputs, so a rollout has 16 questions. 9,000 steps are
  one pass over the questions; the paper does not say how many it made.
- The paper also does not say: the clip range (it has no effect with one update per
  rollout), the temperature, the batch size and steps of the reward model, the warm-up
  and Adam's constants in these stages.
"""

from configs import common, papers

RUNS = 'runs/deepseekmath'


def get_config(variant: str = 'sft'):
    return papers.choose_variant(dict(sft=sft, reward=reward, grpo=grpo), variant)


def sft():
    config = papers.sft()
    config.sft.epochs = 0.0  # train.num_steps instead
    config.optim.learning_rate = 5e-5
    config.train.update(num_steps=500, batch_size=256)
    return config


def reward():
    config = papers.reward(papers.BASE)
    config.optim.learning_rate = 2e-5
    return config


def grpo():
    config = papers.policy(f'{RUNS}_sft', problems=144_000)
    config.task.rewards = papers.rewarded_by(f'{RUNS}_reward')
    config.policy.update(prompts=16, replies=64, epochs=1, max_tokens=1024)
    config.policy.update(kl_loss=0.04, kl_estimator='k3')
    config.grpo = common.grpo_section()
    config.grpo.update(advantage='grpo', objective='clipped', normaliser='sequence')
    config.optim.learning_rate = 1e-6
    config.train.update(num_steps=144_000 // 16, batch_size=1024)
    return config
