"""GPT-2 (Radford et al. 2019) on OpenWebText, with the training of nanoGPT.

    python -m gptjax pretrain --config configs/gpt2.py:124M --workdir runs/gpt2

Variants: 124M, 350M, 774M, 1558M. nanoGPT's 124M reaches a validation loss of about
2.85 after all steps, in four days on eight A100 GPUs.

Departures from the paper: its data and schedule were never published, so both are
those of nanoGPT, which trains 124M; the learning rates of the larger models are those
of GPT-3. The vocabulary has GPT-2's size and is trained on OpenWebText.

Read at the source: nanoGPT's train.py, config/train_gpt2.py and README.md.
"""

from configs import common
from gptjax.models import presets

LEARNING_RATES = {'124M': 6e-4, '350M': 3e-4, '774M': 2.5e-4, '1558M': 2e-4}


def get_config(variant: str = '124M'):
    preset = presets.gpt2(variant)
    config = common.base()
    config.data.sources = dict(openwebtext=common.source('tfds', 'openwebtext'))
    config.data.validation_fraction = 0.0005
    config.data.context = preset.model['context']
    config.tokenizer.vocab_size = preset.vocab_size
    config.tokenizer.train_characters = 200_000_000
    config.model.update(preset.model)
    config.model.update(dtype='bfloat16', remat='dots')
    config.optim.update(
        name='adamw',
        learning_rate=LEARNING_RATES[variant],
        schedule='cosine',
        warmup_steps=2000,
        final_scale=0.1,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.train.update(
        num_steps=600_000,  # 600,000 * 491,520 = 295e9 tokens
        batch_size=480,  # 480 * 1024 = 491,520 tokens
        loss_chunk=16_384,
        eval_every=1000,
    )
    config.checkpoint.every = 1000
    return config
