"""Llama 1, 2 and 3 (Touvron et al. 2023a and b, Llama Team 2024) on C4.

    python -m gptjax pretrain --config configs/llama.py:3-8B --workdir runs/llama

Variants: 1-7B, 1-13B, 1-33B, 1-65B, 2-7B, 2-13B, 2-70B, 3-8B, 3-70B, 3-405B.

Departures from the papers:

- C4 replaces the papers' mixtures of texts.
- The vocabulary has the papers' size and is trained on C4.
- Llama 3 raises the batch size during training; here it is constant. The paper gives
  it for 405B; 3-8B and 3-70B use half of it. The cosine ends with the training; in the
  paper it ends after 1.2M steps.

Read at the source, in the text of the papers: all numbers of Llama 1 and 2 (sections
2.3 and 2.2), and the schedule and the batch size of Llama 3 405B (section 3.4.1). From
memory: the other numbers of Llama 3.

TFDS builds C4 from Common Crawl, which needs the packages apache-beam<2.65, langdetect,
nltk==3.8.1 and tldextract. To train on other text, such as the files of a folder, add
--config.data.sources.c4.kind=text --config.data.sources.c4.path=FOLDER
"""

from configs import common
from gptjax.core.console import UserError
from gptjax.models import presets

VARIANTS = {  # (preset, training tokens, tokens in a batch, learning rate)
    '1-7B': (presets.llama1, 1.0e12, 4 << 20, 3e-4),
    '1-13B': (presets.llama1, 1.0e12, 4 << 20, 3e-4),
    '1-33B': (presets.llama1, 1.4e12, 4 << 20, 1.5e-4),
    '1-65B': (presets.llama1, 1.4e12, 4 << 20, 1.5e-4),
    '2-7B': (presets.llama2, 2.0e12, 4 << 20, 3e-4),
    '2-13B': (presets.llama2, 2.0e12, 4 << 20, 3e-4),
    '2-70B': (presets.llama2, 2.0e12, 4 << 20, 1.5e-4),
    '3-8B': (presets.llama3, 15e12, 8 << 20, 3e-4),
    '3-70B': (presets.llama3, 15e12, 8 << 20, 1.5e-4),
    '3-405B': (presets.llama3, 15.6e12, 16 << 20, 8e-5),
}


def get_config(variant: str = '3-8B'):
    if variant not in VARIANTS:
        raise UserError(
            f'configs/llama.py has no variant {variant!r}: use {", ".join(VARIANTS)}'
        )
    make, tokens, tokens_per_step, learning_rate = VARIANTS[variant]
    preset = make(variant.split('-')[1])
    third = make is presets.llama3
    config = common.base()
    config.data.sources = dict(c4=common.source('tfds', 'c4/en'))
    config.data.validation_fraction = 0.0005
    config.data.context = preset.model['context']
    config.tokenizer.vocab_size = preset.vocab_size
    config.tokenizer.train_characters = 200_000_000
    config.model.update(preset.model)
    config.model.update(dtype='bfloat16', remat='full')
    config.optim.update(
        name='adamw',
        learning_rate=learning_rate,
        schedule='cosine',
        warmup_steps=8000 if third else 2000,
        final_scale=0.01 if third else 0.1,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-5 if make is presets.llama2 else 1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.train.update(
        num_steps=round(tokens / tokens_per_step),
        batch_size=tokens_per_step // preset.model['context'],
        loss_chunk=16_384,
        eval_every=1000,
    )
    config.checkpoint.every = 1000
    return config
