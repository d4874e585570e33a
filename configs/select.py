"""Training data from a model's own replies to problems.

    python -m gptjax select --config configs/select.py --workdir runs/select
    python -m gptjax select --config configs/select.py:reward=runs/reward \\
        --workdir runs/select_chat

The stage writes RUN/selected/chats.jsonl for `sft` (rejection sampling) and
RUN/selected/pairs.jsonl for `dpo` and `reward`. By default runs/sums_sft answers sums,
and the verifier chooses. The variant `reward=RUN` is for dialogue: runs/sft replies,
and the reward model of RUN chooses.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.select = common.select_section()
    config.select.max_tokens = 6  # enough for a sum; the context is only 32
    if variant:
        config.select.by = 'reward'
        config.select.max_tokens = 48  # for dialogue
        problems.use_reward_model(config, 'select.py', variant)
    return config
