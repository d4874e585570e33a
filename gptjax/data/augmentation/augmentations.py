"""The augmentations that `data.augment` names, in the order in which they run.

Those of the text run first, then those of the tokens. To add one, write its function
and name it in TEXT_CHANGES or TOKEN_NOISE.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.augmentation import text_changes
from gptjax.data.augmentation.synonyms import read_synonyms

TEXT_CHANGES = {
    change.__name__: change
    for change in (
        text_changes.character_noise,
        text_changes.reorder_words,
        text_changes.shuffle_sentences,
        text_changes.rotate_document,
        text_changes.delete_spans,
        text_changes.replace_synonyms,
    )
}
SUBWORDS, MIDDLE = 'subword_regularisation', 'fill_in_the_middle'
TOKEN_NOISE = dict(
    token_dropout='token_dropout_rate', token_masking='token_masking_rate'
)
AUGMENTATIONS = (SUBWORDS, *TOKEN_NOISE, *TEXT_CHANGES, MIDDLE)


class Options(NamedTuple):
    """The fields of config.data that augmentations read, and the table of synonyms."""

    typo_rate: float
    reorder_distance: int
    shuffle_rate: float
    rotation_rate: float
    deletion_rate: float
    synonym_rate: float
    synonyms: dict[str, tuple[str, ...]]


def read_options(data: ConfigDict) -> Options:
    named = 'replace_synonyms' in data.augment
    synonyms = read_synonyms(data.synonyms) if named else {}
    return Options(*(data[name] for name in Options._fields[:-1]), synonyms)


def check_names(data: ConfigDict) -> None:
    """For every stage: `data.augment` also decides the tokens of a tokenizer."""
    names = tuple(data.augment)
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(
                f'data.augment: no augmentation is called {name!r}: use '
                f'{", ".join(AUGMENTATIONS)}'
            )
        if names.count(name) > 1:
            raise UserError(f'data.augment: {name!r} occurs twice: remove one')


def check_augmentations(data: ConfigDict, dialogue: bool = False) -> None:
    """Refuses a `data.augment` that cannot run, before any data is built.

    Args:
        dialogue: the rows are conversations.
    """
    check_names(data)
    if dialogue and MIDDLE in data.augment:
        raise UserError(
            f'data.augment: {MIDDLE} is for documents, not for conversations: '
            'leave it out, or use it in `pretrain`'
        )
    read_options(data)


def refuse_augmentations(data: ConfigDict) -> None:
    """For the stages that have no augmentation."""
    if data.augment:
        names = ', '.join(data.augment)
        raise UserError(
            f'data.augment={names}: only `pretrain` and `sft` augment their rows: use '
            'data.augment=()'
        )


def augmentation_identity(data: ConfigDict) -> dict[str, str]:
    """For `Checkpoints`: a hash of the table of synonyms, if it is used.

    The fields themselves are compared as the other fields of the config are.
    """
    synonyms = read_options(data).synonyms
    return dict(synonyms=storage.fingerprint(synonyms)) if synonyms else {}
