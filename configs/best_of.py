"""Best-of-n by a proxy reward, judged by the task's verifier.

    python -m gptjax best_of --config configs/best_of.py:reward=runs/reward \\
        --workdir runs/best_of --config.start.run=runs/sft

Behind the colon stands the run of the reward model that chooses. Without, the rewards
of `task.rewards` do, by default the verifier itself: what n draws can reach at most.
"""

from configs import common


def get_config(variant: str = ''):
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.task = common.task_section()
    config.best_of = common.best_of_section()
    config.best_of.max_tokens = 6  # a sum; more does not fit a context of 32
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    if variant:
        kind, _, run = variant.partition('=')
        if kind != 'reward' or not run:
            raise ValueError(
                f'configs/best_of.py:{variant}: name a reward model as '
                'configs/best_of.py:reward=RUN'
            )
        config.task.rewards = dict(model=common.reward_part('model', run=run))
    return config
