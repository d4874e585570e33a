"""Training data out of a model's own replies to problems that can be judged.

    python -m gptjax select --config configs/select.py --workdir runs/select \\
        --config.start.run=runs/sft
    python -m gptjax select --config configs/select.py:reward=runs/reward …

It makes RUN/selected/chats.jsonl, which `sft` takes (rejection sampling), and
RUN/selected/pairs.jsonl, which `dpo` and `reward` take. Behind the colon stands a
reward model's run, which then chooses instead of the task's verifier.
"""

from configs import common


def get_config(variant: str = ''):
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.task = common.task_section()
    config.select = common.select_section()
    config.select.max_tokens = 6  # a sum; more does not fit a context of 32
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    if variant:
        kind, _, run = variant.partition('=')
        if kind != 'reward' or not run:
            raise ValueError(
                f'configs/select.py:{variant}: name a reward model as '
                'configs/select.py:reward=RUN'
            )
        config.select.by = 'reward'
        config.select.max_tokens = 48  # of a chat
        config.task.rewards = dict(model=common.reward_part('model', run=run))
    return config
