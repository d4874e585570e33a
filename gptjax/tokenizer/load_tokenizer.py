"""Loads a run's tokenizer, of either kind, from its folder.

    RUN/tokenizer/tokenizer.model                            ours, by SentencePiece
    RUN/tokenizer/tokenizer.json, tokenizer_settings.json    an imported one

The SHA-256 of the file that `find_tokenizer` finds identifies the tokenizer.
"""

from pathlib import Path

from gptjax.core.console import UserError
from gptjax.tokenizer.hf_tokenizer import SETTINGS, HFTokenizer
from gptjax.tokenizer.tokenizer import Tokenizer

AnyTokenizer = Tokenizer | HFTokenizer


def find_tokenizer(folder: Path) -> Path | None:
    """The file that is written last, and so tells that the folder is complete."""
    paths = folder / 'tokenizer.model', folder / SETTINGS
    return next((path for path in paths if path.exists()), None)


def load_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of the folder RUN/tokenizer.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = find_tokenizer(folder)
    if path is None:
        raise UserError(
            f'{folder}/tokenizer.model: no such file: make it with the stage '
            '`tokenizer`'
        )
    return (HFTokenizer if path.name == SETTINGS else Tokenizer).load(path)
