"""Gao et al. 2022, "Scaling laws for reward model overoptimization", on sums.

    python -m gptjax overoptimize --config configs/overoptimization.py \\
        --workdir runs/over --config.start.run=runs/sums_sft

One command: right and wrong replies of the model's own, drawn at a high temperature; a
reward model on pairs of them, the proxy; PPO against it; and the plot of proxy and gold
(the verifier) over the square root of the KL, of best-of-n and of PPO's checkpoints.

    python -m gptjax overoptimize --workdir runs/over_chat \\
        --config configs/overoptimization.py:reward=runs/reward \\
        --config.best_of.judge=runs/continued

Behind the colon stands a reward model's run: then it is the proxy, of dialogue, the
policy starts from runs/sft, and another reward model judges (this one:
`reward --config configs/reward.py:continued --workdir runs/continued`).

Departures: on sums the gold reward is a verifier and not a larger reward model, so it
is 0 or 1; the proxy's size is the policy's; one proxy, one policy, one seed.
"""

from configs import common, ppo, problems, reward, select


def get_config(variant: str = ''):
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6
    config.overoptimization = common.overoptimization_section()

    pairs, proxy, policy = select.get_config(), reward.get_config(), ppo.get_config()
    policy.policy.update(kl_reward=0.0, max_tokens=6)  # nothing holds it back
    # Stages of their own, in folders of RUN: --config.parts.ppo.train.num_steps=800
    config.parts = common.ConfigDict(dict(select=pairs, reward=proxy, ppo=policy))
    if variant:
        problems.use_reward_model(config, 'overoptimization.py', variant)
        config.overoptimization.proxy = config.task.rewards.model.run
        config.best_of.update(judge='runs/continued', samples=32, max_tokens=48)
        policy.policy.update(prompts=128, max_tokens=48)
        # 40 rollouts of 128 replies, two updates each; a point of the plot every ten
        policy.train.update(num_steps=80, batch_size=64)
        policy.checkpoint.update(every=20, keep=100)
        policy.optim.update(learning_rate=3e-4, matrix_learning_rate=3e-3)
        return config

    # Of replies drawn at temperature 1 there are a tenth as many pairs, too few to
    # learn from: most problems are answered always or never.
    pairs.select.update(problems=8000, pairs=8, temperature=2.5, max_tokens=6)
    # A proxy that is good and not perfect: one of 1,600 steps, right on 99 in 100
    # pairs, was not over-optimised by as many rollouts.
    proxy.reward.epochs = 0.0
    proxy.optim.update(name='muon', learning_rate=5e-4, matrix_learning_rate=5e-3)
    proxy.train.update(num_steps=900, batch_size=128, eval_every=150, patience=0)
    proxy.checkpoint.update(every=150, keep_best=0)
    # 60 rollouts, slower than configs/ppo.py: a point of the plot every five, of which
    # the first teach the critic alone.
    policy.ppo.warm_up = 5
    policy.optim.update(learning_rate=5e-4, matrix_learning_rate=5e-3)
    policy.checkpoint.update(every=10, keep=100)
    return config
