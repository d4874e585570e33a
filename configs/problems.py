"""What experiments share that begin with a fine-tuned model and a task of problems."""

from configs import common

# A policy gradient is mostly noise: the step goes to 0, and averages are evaluated.
# Muon, as before: AdamW from 1e-4 to 4e-4 went nowhere on sums, at 1.5e-3 down.
POLICY_OPTIMIZER = dict(
    name='muon', schedule='linear', warmup_steps=5, beta2=0.99, ema=0.9
)


def base():
    """A model of sums that answers, and its sums."""
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.task = common.task_section()
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    return config


def use_reward_model(config, file: str, variant: str):
    """Turns `config` to dialogue, and to the reward model of `reward=RUN` alone."""
    kind, _, run = variant.partition('=')
    if kind != 'reward' or not run:
        raise ValueError(
            f'configs/{file}:{variant}: name a reward model as '
            f'configs/{file}:reward=RUN'
        )
    config.start.run = 'runs/sft'
    config.task.path = 'runs/sft/dialogue'
    config.task.rewards = dict(model=common.reward_part('model', run=run))
