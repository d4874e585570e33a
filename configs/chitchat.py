"""The default: 12 MB of human conversations; trains in 7 minutes on two CPU cores.

python -m gptjax pretrain --config configs/chitchat.py --workdir runs/chitchat

With configs/chitchat.py:export the model is a Llama, which `export` can write.
"""

from configs import common


def get_config(variant: str = ''):
    if variant not in ('', 'export'):
        raise ValueError(f'configs/chitchat.py has no variant {variant!r}')
    config = common.base()
    config.tokenizer.vocab_size = 4096
    # All 3 layers in one iteration of the scan: an eighth faster on a CPU than 1 layer.
    config.model.unroll = 3
    config.optim.learning_rate = 1e-2
    config.train.update(num_steps=1800, eval_every=300)
    config.checkpoint.every = 300
    if variant == 'export':  # a Llama, for other libraries
        config.model.update(mlp='swiglu', qk_norm=False)
    return config
