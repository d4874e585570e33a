"""GPT-3 (Brown et al. 2020, tables 2.1 and 2.2, appendix B) on C4.

    python -m gptjax pretrain --config configs/gpt3.py:small --workdir runs/gpt3

Variants: small, medium, large, xl, 2.7B, 6.7B, 13B, 175B.

Departures from the paper:

- C4 replaces the paper's mixture of texts, which was never published.
- Attention is dense in every layer. `presets.gpt3` says why, and how two
  contradictory rows of the table are read.
- The batch has its full size from the first step; the paper raises it over the first
  4 to 12 billion tokens.
- The learning rate decays until the end; in the paper it reaches a tenth after 260
  billion tokens.

Read at the source: appendix B. From memory: tables 2.1 and 2.2.

TFDS builds C4 from Common Crawl, which needs the packages apache-beam<2.65, langdetect,
nltk==3.8.1 and tldextract. To train on other text, such as the files of a folder, add
--config.data.sources.c4.kind=text --config.data.sources.c4.path=FOLDER
"""

from configs import common
from gptjax.models import presets

TOKENS = 300e9
WARMUP_TOKENS = 375e6
# An example has 2048 tokens, so a batch of 0.5M tokens has 256 examples.
TRAINING = {  # (examples in a batch, learning rate)
    'small': (256, 6.0e-4),
    'medium': (256, 3.0e-4),
    'large': (256, 2.5e-4),
    'xl': (512, 2.0e-4),
    '2.7B': (512, 1.6e-4),
    '6.7B': (1024, 1.2e-4),
    '13B': (1024, 1.0e-4),
    '175B': (1568, 0.6e-4),  # 3.2M tokens, rounded to a multiple of 32 examples
}


def get_config(variant: str = 'small'):
    preset = presets.gpt3(variant)
    batch_size, learning_rate = TRAINING[variant]
    tokens_per_step = batch_size * preset.model['context']
    config = common.base()
    config.data.sources = dict(c4=common.source('tfds', 'c4/en'))
    config.data.validation_fraction = 0.0005
    config.data.context = preset.model['context']
    config.tokenizer.vocab_size = preset.vocab_size
    config.tokenizer.train_characters = 200_000_000
    config.model.update(preset.model)
    config.model.update(dtype='bfloat16', remat='dots')
    config.optim.update(
        name='adamw',
        learning_rate=learning_rate,
        schedule='cosine',
        warmup_steps=round(WARMUP_TOKENS / tokens_per_step),
        final_scale=0.1,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.train.update(
        num_steps=round(TOKENS / tokens_per_step),
        batch_size=batch_size,
        loss_chunk=16_384,
        eval_every=1000,
    )
    config.checkpoint.every = 1000
    return config
