"""Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model Overoptimization",
arXiv 2210.10760: best-of-n and PPO against a proxy, judged by the gold reward.

    c=configs/papers/gao.py
    python -m gptjax pretrain --config configs/gpt3.py:xl --workdir runs/base
    python -m gptjax sft --config configs/papers/instructgpt.py:init \\
        --workdir runs/sft --config.sft.pretraining_share=0.0
    python -m gptjax overoptimize --config $c:overoptimize --workdir runs/gao

The variant takes `,tiny`. The last command makes comparisons of the policy's own
replies, trains a proxy on them, optimises it by best-of-n and by PPO, and measures
proxy and gold reward over d = sqrt(KL(policy, start)). The paper fits gold by

    best of n   R(d) = d (alpha - beta d),       KL = ln n - (n - 1) / n
    PPO         R(d) = d (alpha - beta ln d)

For such a fit, RUN/overoptimization.json has `sqrt_kl` and `gold` of each of the
`points` of best-of-n and of the `policy`.

From the paper, section 2: two epochs of fine-tuning on InstructGPT's demonstrations; no
KL penalty. 2.1: 100,000 comparisons, a tenth of them held out, no label swapped. 3.1: n
up to 60,000. Appendix C, table 1: the proxy's batch has 64 comparisons; PPO has a batch
of 256 in 128 minibatches, 256 tokens, a clip of 0.2, lambda 0.95.

Read at the source: all of these, in the text of the paper. It names no code.

Known departures:

- The gold reward is the verifier of the task, 0 or 1, and not a reward model of 6B.
  (--config.best_of.judge=RUN names a reward model, which judges but labels no pairs.) A
  pair is a right and a wrong reply, so two replies to each of 100,000 prompts give
  fewer pairs than prompts. Each prompt is used once.
- Policy and proxy have the size of runs/sft. The paper has policies of 1.2B and 6B and
  proxies of 3M to 3B: --config.overoptimization.proxy=RUN names one of another size.
- The paper gives learning rates as multipliers (1.67e-2 and 4e-3) of an unknown rate.
  Here they are those of InstructGPT (arXiv 2203.02155), whose setting the paper uses:
  9e-6 for the reward model (C.2) and 8.05e-6 for PPO, the highest rate at which its
  runs without pretraining text did not diverge (E.9).
- "Timesteps per rollout" 256 are read as the tokens of a reply, and "minibatches per
  epoch" 128 as updates of 2 replies. More than two devices share such an update only by
  --config.mesh.tensor.
- The paper does not say: the epochs over a rollout, the episodes of PPO (here
  InstructGPT's 256,000), the value loss, averaged weights (here none).
- Best-of-n is computed for powers of two, here up to 32,768, by exact counts in
  Python's integers: a second per problem at 4,000 unequal rewards, many minutes at
  60,000. --config.best_of.samples=1000 is the paper's first experiment.
- Rewards are not recalibrated (2.2), and the formulas are not fitted.
"""

from configs import common, papers


def get_config(variant: str = 'overoptimize'):
    return papers.choose_variant(dict(overoptimize=overoptimize), variant)


def overoptimize():
    config = papers.base(papers.SFT)
    config.task = common.task_section()
    config.task.update(path=papers.PROMPTS, problems=100_000)
    config.best_of = common.best_of_section()
    config.best_of.update(samples=60_000, max_tokens=256)
    config.overoptimization = common.overoptimization_section()
    # A config for each stage, as flags --config.parts.ppo.train.num_steps=1280
    config.parts = common.ConfigDict(dict(select=select(), reward=reward(), ppo=ppo()))
    return config


def select():
    config = papers.base(papers.SFT)
    config.task = common.task_section()
    config.select = common.select_section()
    config.select.update(problems=100_000, replies=2, pairs=1, noise=0.0)
    config.select.update(by='verifier', max_tokens=256)
    return config


def reward():
    config = papers.reward(papers.SFT)
    # A tenth is held out. Half of it validates the proxy, the other half tests it.
    config.reward.update(test_fraction=0.05, validation_fraction=0.05)
    config.optim.update(learning_rate=9e-6, schedule='cosine', final_scale=0.1)
    # 64 pairs of two replies
    config.train.update(num_steps=90_000 // 64, batch_size=128)
    return config


def ppo():
    config = papers.policy(papers.SFT, problems=100_000)
    config.policy.update(prompts=256, replies=1, max_tokens=256, kl_reward=0.0)
    config.ppo = common.ppo_section()
    config.ppo.update(critic='network', clip_low=0.2, clip_high=0.2, lam=0.95)
    config.optim.learning_rate = 8.05e-6
    # 1,000 rollouts of 128 updates
    config.train.update(num_steps=256_000 // 256 * 128, batch_size=256 // 128)
    # a point of the plot every ten rollouts
    config.train.eval_every = 10 * 128
    config.checkpoint.update(every=10 * 128, keep=100)
    return config
