"""Best-of-n by a proxy reward, judged by the task's verifier.

    python -m gptjax best_of --config configs/best_of.py:reward=runs/reward \\
        --workdir runs/best_of --config.start.run=runs/sft

Behind the colon stands the run of the reward model that chooses. Without, the rewards
of `task.rewards` do, by default the verifier itself: what n draws can reach at most.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6  # a sum; more does not fit a context of 32
    if variant:
        config.task.rewards = problems.reward_model('best_of.py', variant)
    return config
