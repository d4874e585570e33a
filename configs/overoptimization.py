"""Gao et al. 2022, "Scaling laws for reward model overoptimization", on sums.

    python -m gptjax overoptimize --config configs/overoptimization.py \\
        --workdir runs/over --config.start.run=runs/sums_sft

This command samples right and wrong replies at a high temperature, trains a reward
model on pairs of them (the proxy), trains a policy against the proxy by PPO, and plots
proxy and gold reward (the verifier) over the square root of the KL, for best-of-n and
for the checkpoints of PPO.

    python -m gptjax overoptimize --workdir runs/over_chat \\
        --config configs/overoptimization.py:reward=runs/reward \\
        --config.best_of.judge=runs/continued

The variant `reward=RUN` is for dialogue: the reward model of RUN is the proxy, and the
policy is initialised from runs/sft. Another reward model is the gold reward; this one
comes from `reward --config configs/reward.py:continued --workdir runs/continued`.

Departures from the paper: on sums the gold reward is a verifier, so it is 0 or 1, and
not a larger reward model. The proxy has the size of the policy. There is one proxy, one
policy and one seed.
"""

from configs import common, ppo, problems, reward, select


def get_config(variant: str = ''):
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6
    config.overoptimization = common.overoptimization_section()

    pairs, proxy, policy = select.get_config(), reward.get_config(), ppo.get_config()
    # The score of the proxy alone: no KL penalty, and none for truncated replies.
    policy.policy.update(kl_reward=0.0, missing_eos_penalty=0.0, max_tokens=6)
    # Each part has a folder in RUN and flags: --config.parts.ppo.train.num_steps=800
    config.parts = common.ConfigDict(dict(select=pairs, reward=proxy, ppo=policy))
    if variant:
        problems.use_reward_model(config, 'overoptimization.py', variant)
        config.overoptimization.proxy = config.task.rewards.model.run
        config.best_of.update(judge='runs/continued', samples=32, max_tokens=48)
        policy.policy.update(prompts=128, max_tokens=48)
        # 40 rollouts of 128 replies with two updates each; one point in ten is plotted
        policy.train.update(num_steps=80, batch_size=64)
        policy.checkpoint.update(every=20, keep=100)
        policy.optim.update(learning_rate=3e-4, matrix_learning_rate=3e-3)
        return config

    # At temperature 1 there are too few pairs, a tenth as many: the replies to most
    # problems are all right or all wrong.
    pairs.select.update(problems=8000, pairs=8, temperature=2.5, max_tokens=6)
    # The proxy must not be perfect: one that was trained for 1,600 steps ranks 99 of
    # 100 pairs correctly, and this many rollouts do not over-optimise it.
    proxy.reward.epochs = 0.0
    proxy.optim.update(name='muon', learning_rate=5e-4, matrix_learning_rate=5e-3)
    proxy.train.update(num_steps=900, batch_size=128, eval_every=150, patience=0)
    proxy.checkpoint.update(every=150, keep_best=0)
    # 60 rollouts with lower learning rates than configs/ppo.py. Every fifth is plotted;
    # the first five train only the critic.
    policy.ppo.warm_up = 5
    policy.optim.update(learning_rate=5e-4, matrix_learning_rate=5e-3)
    policy.checkpoint.update(every=10, keep=100)
    return config
