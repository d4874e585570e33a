"""What experiments share that begin with a fine-tuned model and a task of problems."""

from configs import common


def base():
    """A model of sums that answers, and its sums."""
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.task = common.task_section()
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    return config


def reward_model(file: str, variant: str):
    """`task.rewards` of a variant `reward=RUN` of a config file: that model alone."""
    kind, _, run = variant.partition('=')
    if kind != 'reward' or not run:
        raise ValueError(
            f'configs/{file}:{variant}: name a reward model as '
            f'configs/{file}:reward=RUN'
        )
    return dict(model=common.reward_part('model', run=run))
