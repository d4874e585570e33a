"""What the classical NLP steps do to a generative model: one step, a small model.

    for step in none lowercase remove_punctuation remove_stop_words \
            split_sentences tokenize_words; do
        python -m gptjax pretrain --config configs/classical.py:$step \
            --workdir runs/classical-$step
    done

A minute each on two cores. Bits per byte of the changed text are not comparable
when a step takes bytes away: multiply by (bytes after) / (bytes before), both in
RUN/documents/manifest.json, for the bits that a byte of the original costs; what the
step has taken away is then counted as free, and it is not: nobody can write it back.
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
