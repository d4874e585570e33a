"""Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open
Language Models", arXiv 2402.03300: GRPO with outcome supervision.

    c=configs/papers/deepseekmath.py
    python -m gptjax pretrain --config configs/llama.py:2-7B --workdir runs/base
    python -m gptjax sft    --config $c:sft    --workdir runs/deepseekmath_sft
    python -m gptjax reward --config $c:reward --workdir runs/deepseekmath_reward
    python -m gptjax grpo   --config $c:grpo   --workdir runs/deepseekmath_grpo

Each variant takes `,tiny`.

From the paper, section 3.2: `sft` 500 steps of 256 rows of 4K tokens, constant 5e-5;
section 4.2: the reward model's 2e-5, GRPO's 1e-6, KL coefficient 0.04, 64 outputs a
question, at most 1,024 tokens, batch 1,024, one update after each exploration stage,
144,000 questions. Section 4.1: the advantage is (r - mean) / std, and each reply weighs
the same.

Not the same:

- The KL in the loss is k2, (ln p - ln q)^2 / 2, where the paper has k3, q / p - 1 -
  ln(q / p) (equation 4). Near q both are the same to second order; but the gradient of
  k3 is that of KL(q, p), the other direction, and k2's that of KL(p, q), which the
  paper means (gptjax/post/objectives/kl.py). k3 is there as `k3_loss`, and
  no field chooses it.
- A Llama 2 of 7B stands for DeepSeekMath-Base, which was trained on mathematics and
  code; questions and solutions are the user's own.
- Outcomes alone are rewarded: process supervision (4.1.3) and the iterated reward model
  and reference (4.1.4) are not here.
- The batch of 1,024 is read as outputs, of 16 questions. 9,000 steps are one pass over
  the questions; the paper does not say how many it made. Nor does it say: the clip (it
  acts nowhere, as there is one update), the temperature, the batch and the steps of the
  reward model, warm-up and Adam's constants of these stages.
"""

from configs import common, papers

RUNS = 'runs/deepseekmath'


def get_config(variant: str = 'sft'):
    return papers.chosen(dict(sft=sft, reward=reward, grpo=grpo), variant)


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
    config.policy.kl_loss = 0.04
    config.grpo = common.grpo_section()
    config.grpo.update(advantage='grpo', objective='clipped', normaliser='sequence')
    config.optim.learning_rate = 1e-6
    config.train.update(num_steps=144_000 // 16, batch_size=1024)
    return config
