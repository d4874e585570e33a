"""Gao et al. 2022, "Scaling laws for reward model overoptimization", on sums.

    python -m gptjax overoptimize --config configs/overoptimization.py \\
        --workdir runs/over --config.start.run=runs/sums_sft

One command: pairs of the model's own replies, a tenth of them turned round; a reward
model on these, the proxy; PPO against it; and the plot of proxy and gold (the verifier)
over the square root of the KL, of best-of-n and of PPO's checkpoints.

Departures: the gold reward is a verifier and not a larger reward model, so it is 0 or
1; the proxy's size is the policy's; one proxy, one policy, one seed.
"""

from configs import common, ppo, problems, reward, select


def get_config(variant: str = ''):
    if variant:
        raise ValueError(f'configs/overoptimization.py has no variant {variant!r}')
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6
    config.overoptimization = common.overoptimization_section()

    pairs = select.get_config()
    pairs.select.update(problems=600, pairs=2, noise=0.1, max_tokens=6)
    proxy = reward.get_config()
    policy = ppo.get_config()
    policy.policy.update(kl_reward=0.0, max_tokens=6)  # nothing holds it back
    # a point of the plot every ten rollouts
    policy.checkpoint.update(every=40, keep=100)
    # Stages of their own, in folders of RUN: --config.parts.ppo.train.num_steps=800
    config.parts = common.ConfigDict(dict(select=pairs, reward=proxy, ppo=policy))
    return config
