"""The embedded default: 12 MB of human conversations, ten minutes on two cores.

python -m gptjax pretrain --config configs/chitchat.py --workdir runs/chitchat
"""

from configs import common


def get_config(variant: str = ''):
    if variant:
        raise ValueError(f'configs/chitchat.py has no variant {variant!r}')
    config = common.base()
    return config
