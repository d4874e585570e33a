"""The depth of the model decides all other settings, as in nanochat.

    python -m gptjax pretrain --config configs/depth.py:12 --workdir runs/depth12

The variant is the number of layers. The width is 64 times that (`presets.depth`). The
other settings follow in this order:

    matrix parameters   P = 12 L width^2 + vocabulary width
    tokens              D = 20 P                         Hoffmann et al. 2022
    batch               B = B12 (D / D12)^0.38, a power of two    Bergsma et al. 2025
    learning rates      r12 sqrt(B / B12), as a larger batch has less noise; times
                        sqrt(768 / width) for parameters that are not matrices
    steps               D / B

B12, D12 and r12 are the values at depth 12. The rules were measured by others on other
data: tune depth 12 first, and expect the learning rates of other depths to be right
within a factor of two.

TFDS builds C4 from Common Crawl, which needs the packages apache-beam<2.65, langdetect,
nltk==3.8.1 and tldextract. To train on other text, such as the files of a folder, add
--config.data.sources.c4.kind=text --config.data.sources.c4.path=FOLDER
"""

import math

from configs import common
from gptjax.core.console import UserError
from gptjax.models import presets

VOCAB_SIZE = 32_768
TOKENS_PER_PARAMETER = 20

# Depth 12: 84,934,656 + 25,165,824 parameters, 2.2e9 tokens, 4200 steps.
REFERENCE_DEPTH = 12
REFERENCE_BATCH = 1 << 19  # tokens
REFERENCE_MATRIX_RATE = 0.02  # of Muon
REFERENCE_RATE = 3e-3  # of Adam, for embeddings, the head and vectors


def get_config(variant: str = '12'):
    if not variant.isdecimal() or int(variant) < 1:
        raise UserError(
            f'configs/depth.py has no variant {variant!r}: use a number of layers, '
            'such as configs/depth.py:12'
        )
    layers = int(variant)
    model = presets.depth(layers)
    tokens = TOKENS_PER_PARAMETER * matrix_params(layers)
    tokens_per_step = batch_tokens(layers)
    batch_ratio = tokens_per_step / REFERENCE_BATCH

    config = common.base()
    config.data.sources = dict(c4=common.source('tfds', 'c4/en'))
    config.data.validation_fraction = 0.0005
    config.data.context = model['context']
    config.tokenizer.vocab_size = VOCAB_SIZE
    config.tokenizer.train_characters = 200_000_000
    config.model.update(model)
    config.model.update(dtype='bfloat16', remat='dots')
    config.optim.update(
        name='muon',
        matrix_learning_rate=REFERENCE_MATRIX_RATE * math.sqrt(batch_ratio),
        learning_rate=REFERENCE_RATE
        * math.sqrt(batch_ratio)
        * math.sqrt(REFERENCE_DEPTH / layers),  # the width is proportional to the depth
        schedule='wsd',
        warmup_steps=40,
        decay_fraction=0.5,
        final_scale=0.0,
    )
    config.train.update(
        num_steps=max(1, round(tokens / tokens_per_step)),
        batch_size=tokens_per_step // model['context'],
        loss_chunk=16_384,
        eval_every=250,
    )
    config.checkpoint.every = 250
    return config


def matrix_params(layers: int) -> int:
    """Matrix parameters of the layers and the head; an odd depth has a few more."""
    width = 64 * layers
    return 12 * layers * width**2 + VOCAB_SIZE * width


def batch_tokens(layers: int) -> int:
    """Tokens in a batch, a power of two that grows as D^0.38."""
    growth = matrix_params(layers) / matrix_params(
        REFERENCE_DEPTH
    )  # D grows by the same factor
    return 1 << round(math.log2(REFERENCE_BATCH * growth**0.38))
