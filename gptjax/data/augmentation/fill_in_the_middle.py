"""Fill-in-the-middle (Bavarian et al. 2022): the middle of a text after its end.

    PSM   <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    SPM   <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle

Both are made equally often (the paper's joint training). The text is cut at two random
characters before it is encoded, since a user's text also ends within a token. All
three parts and the three tokens are predicted, as in the paper.
"""

from typing import NamedTuple

from gptjax.core.console import UserError
from gptjax.data.augmentation.random_draws import Draws
from gptjax.tokenizer.load_tokenizer import AnyTokenizer
from gptjax.tokenizer.tokenizer import FILL_IN_THE_MIDDLE

# The names in the order prefix, middle, suffix: ours (and Qwen's), those of StarCoder,
# and those of Code Llama.
NAMES = (
    FILL_IN_THE_MIDDLE,
    ('<fim_prefix>', '<fim_middle>', '<fim_suffix>'),
    ('▁<PRE>', '▁<MID>', '▁<SUF>'),
)


class Sentinels(NamedTuple):
    """Ids of the three tokens."""

    prefix: int
    middle: int
    suffix: int


def find_sentinels(tokenizer: AnyTokenizer) -> Sentinels:
    """The three tokens of a tokenizer; UserError if it has none."""
    for names in NAMES:
        ids = [tokenizer.find_token(name) for name in names]
        if None not in ids:
            return Sentinels(*ids)
    raise UserError(
        'data.augment: fill_in_the_middle needs the tokens '
        f'{", ".join(FILL_IN_THE_MIDDLE)}, and this tokenizer has none: train the '
        'tokenizer with this augmentation in data.augment, start from a model that has '
        'them, or leave it out'
    )


def fill_in_the_middle(
    text: str, draws: Draws, rate: float, sentinels: Sentinels
) -> list[str | int]:
    """The text in parts, with the ids of the three tokens between them.

    A share `rate` of the texts is changed; the others are returned as [text].
    """
    if draws() >= rate:
        return [text]
    first, second = sorted(draws.below(len(text) + 1) for _ in range(2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if draws() < 0.5:
        parts = [sentinels.prefix, prefix, sentinels.suffix, suffix]
        return [*parts, sentinels.middle, middle]
    parts = [sentinels.prefix, sentinels.suffix, suffix, sentinels.middle]
    return [*parts, prefix + middle]
