"""A small model for tests and first tries: 200 steps in 90 seconds on two CPU cores.

python -m gptjax pretrain --config configs/tiny.py --workdir runs/tiny
"""

from configs import common


def get_config(variant: str = ''):
    if variant:
        raise ValueError(f'configs/tiny.py has no variant {variant!r}')
    config = common.base()
    config.data.sources.chitchat.limit = 400
    config.data.context = 64
    config.tokenizer.vocab_size = 512
    # 4 divides heads, width and context, and 8 the batch: every mesh of 8 devices works
    config.model.update(num_layers=2, width=64, num_heads=4, num_kv_heads=4, context=64)
    config.train.update(num_steps=200, batch_size=16, eval_every=50, eval_batches=4)
    config.checkpoint.every = 50
    config.optim.warmup_steps = 10
    return config
