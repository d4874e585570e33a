"""The search space of `tune`: config fields, and the values that each may take.

    --space "optim.learning_rate=log(1e-4,1e-1); model.width=choice(128,192,256)"

    log(low, high)       a number, even on a logarithmic scale
    uniform(low, high)   a number, even on a linear scale
    int(low, high)       a whole number; int(low, high, step): low, low + step, …
    logint(low, high)    a whole number, even on a logarithmic scale
    choice(a, b, …)      one of these values; a text needs no quotation marks

A grid needs to know how many values it has: log(low, high, count), and likewise
`uniform` and `logint`. The text is parsed and never run; every end of a range and every
choice has to be a value that the schema allows.
"""

import ast
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.console import UserError
from gptjax.core.fields import Field
from gptjax.core.schema import SCHEMA

RANGES = ('log', 'uniform', 'int', 'logint')
EXAMPLE = 'optim.learning_rate=log(1e-4,1e-1); model.width=choice(128,192)'


class Dimension(NamedTuple):
    """One config field of a search space.

    field: such as 'optim.learning_rate'.
    kind: 'log', 'uniform', 'int', 'logint' or 'choice'.
    values: (low, high) of a range, or the choices.
    third: of a range, the step of `int` or the number of values on a grid; else None.
    """

    field: str
    kind: str
    values: tuple
    third: int | None = None

    def suggest(self, trial) -> Any:
        """The value that an Optuna trial has, or gets, for this field."""
        if self.kind == 'choice':
            return self.choices()[
                trial.suggest_categorical(self.field, [*self.choices()])
            ]
        if self.kind == 'int':
            return trial.suggest_int(self.field, *self.values, step=self.third or 1)
        if self.kind == 'logint':
            return trial.suggest_int(self.field, *self.values, log=True)
        return trial.suggest_float(self.field, *self.values, log=self.kind == 'log')

    def choices(self) -> dict:
        """The choices by what the database can hold; lists are there as texts."""
        return {repr(v) if isinstance(v, tuple) else v: v for v in self.values}

    def grid(self) -> list:
        """The values of a grid, as the database holds them."""
        if self.kind == 'choice':
            return [*self.choices()]
        low, high = self.values
        if self.kind == 'int':
            return [*range(low, high + 1, self.third or 1)]
        if self.third is None:
            raise UserError(
                f'--space: {self.field}={self.kind}({low},{high}): a grid needs the '
                f'number of values: use {self.kind}({low},{high},5), for example'
            )
        space = np.linspace if self.kind == 'uniform' else np.geomspace
        values = space(low, high, self.third).tolist()
        if self.kind == 'logint':
            return sorted({round(value) for value in values})
        return [low, *values[1:-1], high][: self.third]  # the ends without rounding


def parse_space(text: str) -> list[Dimension]:
    """The dimensions in the text of --space.

    Raises UserError, which names the field, for what is not as described above.
    """
    dimensions = []
    for part in filter(str.strip, text.split(';')):
        name, equals, values = (word.strip() for word in part.partition('='))
        if not equals:
            raise UserError(f'--space: {name!r} has no range: use e.g. {EXAMPLE}')
        if name in (dimension.field for dimension in dimensions):
            raise UserError(f'--space: {name} is there twice: leave one out')
        dimensions.append(_make_dimension(name, _find_field(name), values))
    if not dimensions:
        raise UserError(f'--space is empty: use e.g. --space "{EXAMPLE}"')
    return dimensions


def _find_field(name: str) -> Field:
    """The field of a name such as 'data.sources.own.weight'."""
    fields, words = SCHEMA, name.split('.')
    for place, word in enumerate(words):
        if isinstance(fields, Field) and isinstance(fields.range, dict):
            fields = fields.range  # the word is the name that the user gave to an entry
            continue
        known = fields if isinstance(fields, dict) else {}
        if word not in known:
            nearest = difflib.get_close_matches(word, known, 1)
            fix = '.'.join([*words[:place], *nearest, *words[place + 1 :]])
            fix = f'use {fix}, or ' if nearest else ''
            raise UserError(
                f'--space: {name}: there is no such field: {fix}see '
                'gptjax/core/schema.py, which lists all fields'
            )
        fields = fields[word]
    if not isinstance(fields, Field) or isinstance(fields.default, dict):
        raise UserError(f'--space: {name} is a section: name one of its fields')
    return fields


def _make_dimension(name: str, field: Field, text: str) -> Dimension:
    where = f'--space: {name}={text}'
    kind, values = _parse_call(where, text)
    type_of_field = type(field.default)
    if kind == 'choice':
        values = tuple(_convert(where, field, value) for value in values)
        if len(set(values)) < max(2, len(values)):
            raise UserError(f'{where}: use at least two choices, each once')
        return Dimension(name, kind, values)
    if len(values) not in (2, 3):
        raise UserError(f'{where}: a range has two ends: use e.g. {kind}(1,2)')
    if type_of_field not in (int, float):
        kind_of_value = {bool: 'True or False', str: 'a text', tuple: 'a list'}
        raise UserError(
            f'{where}: its value is {kind_of_value[type_of_field]}: use choice(…)'
        )
    if type_of_field is int and 'int' not in kind:
        raise UserError(f'{where}: its value is a whole number: use int or logint')
    low, high = (_convert(where, field, value) for value in values[:2])
    if 'int' in kind and (low != int(low) or high != int(high)):
        raise UserError(f'{where}: the ends of {kind} are whole numbers')
    if not low < high:
        raise UserError(f'{where}: the range is empty: the first end is the lower one')
    if kind.startswith('log') and low <= 0:
        raise UserError(f'{where}: a logarithmic range starts above 0')
    if 'int' in kind:
        low, high = int(low), int(high)
    third = values[2] if len(values) == 3 else None
    least = 1 if kind == 'int' else 2
    if third is not None and not (type(third) is int and third >= least):
        what = 'the step' if kind == 'int' else 'the number of values on a grid'
        raise UserError(f'{where}: {what} is a whole number of at least {least}')
    if kind == 'int' and third:
        if third > high - low:
            raise UserError(f'{where}: the range is empty: the step is longer than it')
        high -= (high - low) % third
    return Dimension(name, kind, (low, high), third)


def _parse_call(where: str, text: str) -> tuple[str, list]:
    """('log', [1e-4, 1e-1]) of 'log(1e-4,1e-1)'."""
    try:
        call = ast.parse(text, mode='eval').body
        if not isinstance(call, ast.Call) or call.keywords:
            raise ValueError
        kind, values = call.func.id, [_read_literal(node) for node in call.args]
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        raise UserError(f'{where}: this is no range: use e.g. {EXAMPLE}') from None
    if kind not in (*RANGES, 'choice'):
        raise UserError(f'{where}: use one of {", ".join(RANGES)} or choice')
    return kind, values


def _read_literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id  # a text without quotation marks
    value = ast.literal_eval(node)
    if isinstance(value, list):
        return tuple(value)
    return value


def _convert(where: str, field: Field, value: Any) -> Any:
    """The value in the type of the field."""
    kind = type(field.default)
    if not field.allows(value):
        raise UserError(f'{where}: {value!r}: {field.advice(value)}')
    return kind(value) if kind in (int, float) else value


def check_grid(dimensions: Sequence[Dimension], sampler: str) -> int:
    """The number of points of a grid; 0 for other samplers, which have no grid."""
    if sampler == 'grid':
        return int(np.prod([len(dimension.grid()) for dimension in dimensions]))
    for field, kind, values, third in dimensions:
        if third and kind != 'int':
            low, high = values
            raise UserError(
                f'--space: {field}={kind}({low},{high},{third}): only --sampler=grid '
                f'has a number of values: use {kind}({low},{high})'
            )
    return 0
