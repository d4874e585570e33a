"""The base of experiments on a task with problems, after fine-tuning."""

from configs import common

# Policy gradients are noisy, so the learning rate decays to 0 and averaged weights are
# evaluated. The optimizer is Muon, as before: on sums, AdamW did not improve the policy
# with learning rates from 1e-4 to 4e-4, and made it worse with 1.5e-3.
POLICY_OPTIMIZER = dict(
    name='muon', schedule='linear', warmup_steps=5, beta2=0.99, ema=0.9
)


def base():
    """The fine-tuned model of sums, and the task of sums."""
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.task = common.task_section()
    config.chat.template = 'turns'
    config.data.context = 0  # that of the model
    return config


def use_reward_model(config, file: str, variant: str):
    """Changes `config` to dialogue and the reward model of the variant `reward=RUN`."""
    kind, _, run = variant.partition('=')
    if kind != 'reward' or not run:
        raise ValueError(
            f'configs/{file}:{variant}: name a reward model by '
            f'configs/{file}:reward=RUN'
        )
    config.start.run = 'runs/sft'
    # A reference, so that a flag that names another run also changes the path.
    config.task.path = config.start.get_ref('run') + '/dialogue'
    config.task.rewards = dict(model=common.reward_part('model', run=run))
