"""Best-of-n by a proxy reward, judged by the task's verifier or another reward model.

    python -m gptjax best_of --config configs/best_of.py --workdir runs/best_of \\
        --config.start.run=runs/sums_sft
    python -m gptjax best_of --config configs/best_of.py:reward=runs/reward \\
        --workdir runs/best_chat --config.best_of.judge=runs/continued

Behind the colon stands the run of the reward model that chooses, of dialogue. Without,
the rewards of `task.rewards` do, by default the verifier itself: what n draws can reach
at most. A reward model of sums: --config.task.path= --config.start.run=runs/sums_sft
and --config.best_of.max_tokens=6.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6  # a sum; more does not fit a context of 32
    if variant:
        problems.use_reward_model(config, 'best_of.py', variant)
        config.best_of.max_tokens = 48  # of a chat
    return config
