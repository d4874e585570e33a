"""A few conversations, and what helps against overfitting, each alone and together.

    python -m gptjax pretrain --config configs/small_data.py --workdir runs/small
    launch/study_data.sh runs/study_data       # every variant, over three seeds

A model of 0.4M parameters sees 61 kB of text five times, in 10 seconds on two idle
cores: the validation loss of the variant `control` passes its minimum after two thirds
of the steps. A variant with the name of a regularisation or an augmentation has that
one alone, `:together`, the default, those that helped in the study:
gptjax/train/README.md has its tables. `:sft_control`, `:sft_dropout`, … fine-tune on
the same conversations, from runs/small or from --config.start.run=RUN.
"""

from configs import common

# The fields that differ from the control.
REGULARISATION = dict(
    dropout={
        'model.embedding_dropout': 0.1,
        'model.attention_dropout': 0.1,
        'model.residual_dropout': 0.1,
    },
    weight_decay={'optim.weight_decay': 0.1},
    label_smoothing={'train.label_smoothing': 0.1},
    ema={'optim.ema': 0.98},
    early_stopping={'train.patience': 1},
    neftune={'sft.neftune_alpha': 5.0},
)
AUGMENTATION = (
    *('subword_regularisation', 'token_dropout', 'token_masking', 'character_noise'),
    *('reorder_words', 'shuffle_sentences', 'rotate_document', 'delete_spans'),
    *('replace_synonyms', 'fill_in_the_middle'),
)
# What helped in the study; of the augmentations the two that helped most.
TOGETHER = ('dropout', 'weight_decay', 'ema', 'character_noise', 'rotate_document')
SFT_TOGETHER = ('dropout', 'ema', 'neftune', 'token_dropout')

TEXT = tuple(name for name in REGULARISATION if name != 'neftune')
DIALOGUE = ('dropout', 'ema', 'early_stopping', 'neftune', 'token_dropout')
VARIANTS = (
    *('control', *TEXT, *AUGMENTATION, 'together', 'sft'),
    *(f'sft_{name}' for name in ('control', *DIALOGUE, 'together')),
)


def get_config(variant: str = ''):
    if variant not in ('', *VARIANTS):
        raise ValueError(
            f'configs/small_data.py has no variant {variant!r}: use one of '
            + ', '.join(VARIANTS)
        )
    config = common.base()
    conversations = common.source('tfds', 'chitchat', limit=40)
    config.data.sources = dict(chitchat=conversations)
    config.data.validation_fraction = 0.5  # much of it, for a steady figure
    config.data.context = 64
    config.data.synonyms = 'configs/synonyms.tsv'
    config.tokenizer.vocab_size = 1024
    config.model.update(num_layers=2, width=96, num_heads=2, context=64, unroll=2)
    config.train.update(num_steps=240, batch_size=8, eval_every=30, eval_batches=0)
    config.checkpoint.every = 240
    is_dialogue = variant.startswith('sft')
    if is_dialogue:
        config.start = common.start_section('runs/small')
        config.sft = common.sft_section(epochs=0.0)
        config.lora = common.lora_section()
        config.chat.template = 'turns'
        config.dialogue = common.dialogue_section(chitchat=conversations)
        config.optim.update(name='adamw', learning_rate=1e-3, schedule='linear')
    alone = variant.removeprefix('sft').removeprefix('_')
    together = SFT_TOGETHER if is_dialogue else TOGETHER
    for name in together if alone in ('', 'together') else (alone,):
        if name in AUGMENTATION:
            config.data.augment = (*config.data.augment, name)
        elif name != 'control':
            config.update_from_flattened_dict(REGULARISATION[name])
    return config
