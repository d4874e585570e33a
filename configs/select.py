"""Training data out of a model's own replies to problems that can be judged.

    python -m gptjax select --config configs/select.py --workdir runs/select
    python -m gptjax select --config configs/select.py:reward=runs/reward \\
        --workdir runs/select_chat

It makes RUN/selected/chats.jsonl, which `sft` takes (rejection sampling), and
RUN/selected/pairs.jsonl, which `dpo` and `reward` take. Behind the colon stands a
reward model's run, which then chooses among replies to the dialogue of runs/sft, where
without it is the verifier among those of runs/sums_sft to sums.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.select = common.select_section()
    config.select.max_tokens = 6  # a sum; more does not fit a context of 32
    if variant:
        config.select.by = 'reward'
        config.select.max_tokens = 48  # of a chat
        problems.use_reward_model(config, 'select.py', variant)
    return config
