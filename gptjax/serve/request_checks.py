"""JSON values against JSON Schema: the part of it that `schemas.py` is written in.

The document at /openapi.json publishes the very schemas that are enforced here.
"""

import math
import re
from typing import Any

from gptjax.serve.api_errors import ApiError, bad_request

KINDS = {
    'string': lambda x: isinstance(x, str),
    'boolean': lambda x: isinstance(x, bool),
    'integer': lambda x: (
        (isinstance(x, int) and not isinstance(x, bool))
        or (isinstance(x, float) and x.is_integer())
    ),
    'number': lambda x: (
        (isinstance(x, int) and not isinstance(x, bool))  # however long
        or (isinstance(x, float) and math.isfinite(x))
    ),
    'array': lambda x: isinstance(x, list),
    'object': lambda x: isinstance(x, dict),
    'null': lambda x: x is None,
}
WORDS = {
    'string': 'a string',
    'boolean': 'true or false',
    'integer': 'a whole number',
    'number': 'a number',
    'array': 'an array',
    'object': 'an object',
    'null': 'null',
}


def check(value: Any, schema: dict, path: str = '') -> None:
    """Returns if `value` is as `schema` says.

    Args:
        value: parsed JSON.
        schema: may use type, enum, minimum, maximum, exclusiveMinimum, minLength,
            maxLength, pattern, minItems, maxItems, items, properties, required,
            additionalProperties, propertyNames, maxProperties and anyOf.
        path: of the value within the body, as 'messages[0]'.

    Raises:
        ApiError: 400; it names the field and what to use.
    """
    if 'anyOf' in schema:
        return _check_any(value, schema, path)
    kinds = schema.get('type', list(KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(KINDS[kind](value) for kind in kinds):
        words = [WORDS[kind] for kind in kinds if kind != 'null'] or ['null']
        raise _wrong(path, value, ' or '.join(words), 'invalid_type')
    if 'enum' in schema and value not in schema['enum']:
        raise _wrong(path, value, _list(schema['enum']))
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        _check_number(value, schema, path)
    elif isinstance(value, str):
        _check_length(len(value), schema, path, 'Length', 'characters')
        if 'pattern' in schema and not re.search(schema['pattern'], value):
            raise _wrong(path, value, f'a string like {schema["pattern"]}')
    elif isinstance(value, list):
        _check_length(len(value), schema, path, 'Items', 'items')
        for place, item in enumerate(value):
            check(item, schema.get('items', {}), f'{path}[{place}]')
    else:
        _check_object(value, schema, path)


def _check_any(value, schema, path):
    """One of several; where its kind tells which, the error is that one's."""
    errors, likely = [], []
    for option in schema['anyOf']:
        try:
            return check(value, option, path)
        except ApiError as error:
            errors.append(error)
            if KINDS[option['type']](value):
                likely.append(error)
    if len(likely) == 1:
        raise likely[0]
    raise _wrong(path, value, schema['description'], 'invalid_type')


def _check_number(value, schema, path):
    low, high = schema.get('minimum'), schema.get('maximum')
    above = schema.get('exclusiveMinimum')
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        first = f'above {above}' if low is None else f'from {low}'
        raise _wrong(path, value, f'a number {first} to {high}')


def _check_length(length, schema, path, suffix, unit):
    low, high = schema.get(f'min{suffix}', 0), schema.get(f'max{suffix}')
    if length < low:
        raise bad_request(path, f'it has {length} {unit}: give {low} or more')
    if high is not None and length > high:
        raise bad_request(path, f'it has {length:,} {unit}: give {high:,} at most')


def _check_object(value, schema, path):
    prefix = f'{path}.' if path else ''
    known = schema.get('properties', {})
    others = schema.get('additionalProperties', True)
    if len(value) > schema.get('maxProperties', len(value)):
        most = schema['maxProperties']
        raise bad_request(path, f'it has {len(value):,} entries: give {most} at most')
    for name in schema.get('required', ()):
        if name not in value:
            raise bad_request(f'{prefix}{name}', 'it is missing', 'missing_parameter')
    for name, item in value.items():
        place = f'{prefix}{name[:60]}'
        if name in known:
            check(item, known[name], place)
        elif others is False:
            raise bad_request(
                place, 'this server does not have it: leave it out', UNSUPPORTED
            )
        elif isinstance(others, dict):
            check(name, schema.get('propertyNames', {}), place)
            check(item, others, place)


UNSUPPORTED = 'unsupported_parameter'


def _wrong(path, value, wanted, code='invalid_value'):
    shown = repr(value)
    if len(shown) > 60:
        shown = f'{shown[:56]} …'
    if not path:
        return bad_request(None, f'the body is {shown}: send {wanted}', code)
    return ApiError(400, f'{path}={shown}: use {wanted}', code, path)


def _list(values):
    return ', '.join('null' if value is None else str(value) for value in values)
