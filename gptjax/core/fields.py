"""The type of a config field, and the ranges of values that a field may have."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The values that a field may have.

    holds: whether a value of the field's type is in the range.
    words: the range in words, for error messages.
    choices: all values, for a text with few of them.
    """

    holds: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Range:
    """The range of a text that is one of a few choices."""
    words = ', '.join(choice or "''" for choice in choices)
    return Range(lambda x: x in choices, f'one of {words}', choices)


AT_LEAST_1 = Range(lambda x: x >= 1, 'a number of at least 1')
AT_LEAST_2 = Range(lambda x: x >= 2, 'a number of at least 2')
AT_LEAST_0 = Range(lambda x: x >= 0, '0 or a positive number')
POSITIVE = Range(lambda x: x > 0, 'a positive number')
FINITE = Range(lambda x: True, 'a finite number')
STEP_OR_NONE = Range(lambda x: x >= -1, 'the number of a step, or -1')
NUMBER_OR_NONE = Range(lambda x: x >= -1, 'a number from 0, or -1')
SHARE = Range(lambda x: 0 <= x <= 1, 'a share from 0 to 1')
BELOW_ONE = Range(lambda x: 0 <= x < 1, 'a number from 0 to below 1')
INNER_SHARE = Range(lambda x: 0 < x < 1, 'a share between 0 and 1')
SOME_SHARE = Range(lambda x: 0 < x <= 1, 'a share above 0, at most 1')
UP_TO_HALF = Range(lambda x: 0 <= x <= 0.5, 'a share from 0 to 0.5')
BELOW_HALF = Range(lambda x: 0 <= x < 0.5, 'a share from 0 to below 0.5')
LESS_THAN_HALF = Range(
    lambda x: 0 < x < 0.5, 'a share above 0 and below 0.5: validation takes as much'
)
SEED = Range(lambda x: 0 <= x < 2**32, f'a number from 0 to {2**32 - 1}')
MESH_SIZE = Range(lambda x: x >= 1 or x == -1, 'a positive size, or -1')
YES_OR_NO = Range(lambda x: True, 'True or False')
TEXT = Range(lambda x: True, 'a text')
TEXTS = Range(lambda x: all(isinstance(text, str) for text in x), 'a list of texts')
WINDOWS = Range(
    lambda x: x and all(type(window) is int and window >= 0 for window in x),
    'the numbers of tokens that the layers see, 0 for all',
)
FREQUENCIES = Range(
    lambda x: all(type(number) in (int, float) and number > 0 for number in x),
    'a positive number for each rotated pair of a head, or none',
)
OPTIONS = Range(lambda x: True, 'names with a value each')

DEFAULT_RANGES = {
    bool: YES_OR_NO,
    int: AT_LEAST_0,
    float: AT_LEAST_0,
    str: TEXT,
    tuple: TEXTS,
    dict: OPTIONS,
}

SAME = object()  # the default
NEEDED = object()  # every run has this field


@dataclass
class Field:
    """One config field.

    default: decides the type: a number, a bool, a text, a tuple of texts or a dict.
    doc: what the field does, in one line.
    range: the allowed values; without it, the range in DEFAULT_RANGES of the type.
        For a dict with entries under names that the user chooses: the fields of an
        entry.
    before: the value in runs that are older than the field.
    free: whether the field may change during training; it does not decide the weights.
    """

    default: Any
    doc: str
    range: 'Range | dict[str, Field] | None' = None
    before: Any = SAME
    free: bool = False

    def __post_init__(self):
        if self.range is None:
            self.range = DEFAULT_RANGES[type(self.default)]

    def allows(self, value: Any) -> bool:
        """Whether the field may have this value. Entries of a dict are not checked."""
        kind = type(self.default)
        if kind is dict:
            return hasattr(value, 'items')
        if kind is tuple:
            return isinstance(value, list | tuple) and bool(self.range.holds(value))
        if kind in (bool, str):
            return isinstance(value, kind) and self.range.holds(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if kind is int and value % 1 != 0:  # also false for infinity and NaN
            return False
        return -math.inf < value < math.inf and self.range.holds(value)

    def advice(self, value: Any) -> str:
        """What to use instead of a value that is not allowed."""
        if isinstance(self.range, dict):
            return 'use names with a section each'
        if isinstance(value, float) and type(self.default) is int and value % 1:
            return f'use a whole number: {self.range.words}'
        return f'use {self.range.words}'
