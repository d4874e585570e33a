"""The effect of classical NLP preprocessing steps on a small generative model.

    for step in none lowercase remove_punctuation remove_stop_words \
            split_sentences tokenize_words; do
        python -m gptjax pretrain --config configs/classical.py:$step \
            --workdir runs/classical-$step
    done

Each run takes a minute on two CPU cores. A step that removes bytes makes bits per byte
incomparable: multiply by (bytes after) / (bytes before), which are in
RUN/documents/manifest.json, to get the bits per byte of the original text. This counts
the removed information as free, although it cannot be restored.
"""

from configs import common

STEPS = (
    'none',
    'lowercase',
    'remove_punctuation',
    'remove_stop_words',
    'split_sentences',
    'tokenize_words',
)


def get_config(variant: str = 'none'):
    if variant not in STEPS:
        raise ValueError(
            f'configs/classical.py has no variant {variant!r}: use one of '
            + ', '.join(STEPS)
        )
    config = common.base()
    if variant != 'none':
        config.data.clean = (*config.data.clean, variant)
    config.model.update(num_layers=2, width=128, num_heads=2, unroll=2)
    config.train.update(num_steps=600, eval_every=600, eval_batches=0)
    return config
