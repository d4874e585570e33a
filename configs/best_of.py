"""Best-of-n: choose replies by a proxy reward, and judge them by a gold reward.

    python -m gptjax best_of --config configs/best_of.py --workdir runs/best_of \\
        --config.start.run=runs/sums_sft
    python -m gptjax best_of --config configs/best_of.py:reward=runs/reward \\
        --workdir runs/best_chat --config.best_of.judge=runs/continued

The variant `reward=RUN` is for dialogue: the reward model of RUN chooses. Without it,
the rewards of `task.rewards` choose. The default is the verifier, which shows the
highest accuracy that n samples can reach. A reward model that was trained on sums needs
--config.task.path= --config.start.run=runs/sums_sft --config.best_of.max_tokens=6.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6  # enough for a sum; the context is only 32
    if variant:
        problems.use_reward_model(config, 'best_of.py', variant)
        config.best_of.max_tokens = 48  # for dialogue
    return config
