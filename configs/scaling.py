"""A scaling law on the default text, and a forecast of this run made in advance.

    python -m gptjax scaling --config configs/scaling.py --workdir runs/scaling

The config is that of the large run: 0.4M parameters of matrix products, 2.0M tokens,
5.8e12 FLOPs. The ladder below it is in gptjax/tune/ladder.py. With this vocabulary the
training text has 4.5M tokens, so no run reads a text twice: repeated text teaches less
than new text, and the law knows only new text.
"""

from configs import common


def get_config(variant: str = ''):
    if variant:
        raise ValueError(f'configs/scaling.py has no variant {variant!r}')
    config = common.base()
    config.tokenizer.vocab_size = 1024
    # Small heads, so that there are many widths below: 8, 16, …, 88.
    config.model.update(num_layers=3, width=96, num_heads=12)
    config.optim.learning_rate = 1e-2
    # Small batches, so that the shortest runs still have a hundred steps.
    config.train.update(num_steps=2000, batch_size=8, eval_every=1000)
    config.checkpoint.every = 500
    return config
