"""What a request may hold, as JSON Schema: enforced by `validate`, published as is.

What would change a reply and is not here is refused by name; what changes nothing
(`user`, `metadata`, …) is accepted and ignored. Everything that may be left out may
also be null.
"""

import math
import re
from typing import Any

from gptjax.infer.request import BIAS_LIMITS, LIMITS
from gptjax.serve.api_errors import ApiError, bad_request

MAX_BODY_BYTES = 2**20
MAX_MESSAGES = 1024  # of a conversation
MAX_PARTS = 64  # of a message's content
MAX_CHOICES = 16  # replies to one prompt
MAX_PROMPTS = 64  # of one request
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024  # of logit_bias
MAX_PROMPT_TOKENS = 2**17  # as ids; the context sets the real limit


# ---- fields -------------------------------------------------------------------


def _integer(low, high, description):
    limits = dict(minimum=low, maximum=high)
    return dict(type=['integer', 'null'], description=description, **limits)


def _limited(name, description, type_name='number', **narrower):
    """A field of the engine's parameters, within their limits or `narrower` ones."""
    low, high, above = LIMITS[name]
    limits = {'exclusiveMinimum' if above else 'minimum': low, 'maximum': high}
    return dict(type=[type_name, 'null'], description=description, **limits | narrower)


def _boolean(description):
    return dict(type=['boolean', 'null'], description=description)


def _ids(**limits):
    token = dict(type='integer', minimum=0, maximum=2**31 - 1)
    return dict(type='array', items=token, **limits)


def _object(required, properties):
    fields = dict(required=required, properties=properties)
    return dict(type='object', **fields, additionalProperties=False)


def _unsupported(*types):
    """A field that clients may send as long as it is empty or null."""
    description = 'Not supported: leave it out, null or empty.'
    limits = dict(maxItems=0, maxProperties=0)
    return dict(type=[*types, 'null'], **limits, description=description)


TEXT = dict(type='string')
MAYBE_TEXT = dict(type=['string', 'null'])
MODEL = dict(MAYBE_TEXT, description='An id of /v1/models; by default the first.')
TEXT_PART = _object(['type', 'text'], dict(type=dict(enum=['text']), text=TEXT))
CONTENT = dict(
    description='a string or an array of text parts',
    anyOf=[TEXT, dict(type='array', minItems=1, maxItems=MAX_PARTS, items=TEXT_PART)],
)
ROLES = ['system', 'developer', 'user', 'assistant']
MESSAGE = _object(
    ['role', 'content'],
    dict(
        role=dict(enum=ROLES, description='`developer` is read as `system`.'),
        content=CONTENT,
        # Clients send back the messages of earlier answers, with these fields.
        **dict.fromkeys(('name', 'refusal', 'audio', 'function_call'), _unsupported()),
        **dict.fromkeys(('tool_calls', 'annotations'), _unsupported('array')),
    ),
)
MESSAGE_LIST = dict(type='array', items=MESSAGE, minItems=1, maxItems=MAX_MESSAGES)
STOP_TEXT = dict(type='string', minLength=1, maxLength=MAX_STOP_CHARACTERS)
STOP = dict(
    description=(
        'a string, or an array of them: the reply ends before the first that is '
        'complete'
    ),
    anyOf=[
        STOP_TEXT,
        dict(type='array', maxItems=MAX_STOPS, items=STOP_TEXT),
        dict(type='null'),
    ],
)
JSON_SCHEMA = _object(
    ['schema'],
    dict(
        name=MAYBE_TEXT,
        description=MAYBE_TEXT,
        strict=dict(type=['boolean', 'null']),
        schema=dict(type='object'),
    ),
)
RESPONSE_FORMAT = dict(
    _object(
        ['type'],
        dict(
            type=dict(enum=['text', 'json_object', 'json_schema']),
            json_schema=dict(JSON_SCHEMA, type=['object', 'null']),
        ),
    ),
    type=['object', 'null'],
    description='What the reply is: text, any JSON object, or JSON by a schema.',
)

SAMPLING = dict(
    temperature=_limited(
        'temperature', 'Divides the logits; 0: the likeliest token. 1.'
    ),
    top_k=_limited('top_k', 'Tokens that stay, the likeliest; 0: all. 0.', 'integer'),
    top_p=_limited('top_p', 'The likeliest stay until they add up to this. 1.'),
    min_p=_limited('min_p', "Least share of the likeliest's probability. 0."),
    repetition_penalty=_limited(
        'repetition_penalty', 'Of tokens in prompt or reply; 1: none.'
    ),
    presence_penalty=_limited('presence_penalty', 'Of tokens that the reply has. 0.'),
    frequency_penalty=_limited('frequency_penalty', 'The same, times how often. 0.'),
    logit_bias=dict(
        type=['object', 'null'],
        description='Token ids, and what is added to their logits.',
        propertyNames=dict(type='string', pattern='^[0-9]{1,9}$'),
        additionalProperties=dict(
            type='number', minimum=BIAS_LIMITS.least, maximum=BIAS_LIMITS.most
        ),
        maxProperties=MAX_BIASES,
    ),
    seed=_limited(
        'seed',
        'The same weights, prompt, parameters and seed give the same reply. The '
        'choices of n take seed, seed + 1, …; by default it is random.',
        'integer',
    ),
    stop=STOP,
    n=_integer(1, MAX_CHOICES, 'Replies to each prompt. 1.'),
    response_format=RESPONSE_FORMAT,
    stream=_boolean('Send the reply as it is drawn, as server-sent events.'),
    stream_options=dict(
        type=['object', 'null'],
        description='With `stream` only.',
        properties=dict(
            include_usage=_boolean('A last chunk that counts tokens.'),
            include_obfuscation=_boolean('Ignored.'),
        ),
        additionalProperties=False,
    ),
)

_IGNORED = dict(description='Ignored.')
HARMLESS = dict.fromkeys(
    (
        *('user', 'metadata', 'store', 'service_tier', 'safety_identifier'),
        *('prompt_cache_key', 'prompt_cache_retention'),
    ),
    _IGNORED,
)


# ---- bodies -------------------------------------------------------------------

CHAT = _object(
    ['messages'],
    dict(
        model=MODEL,
        messages=MESSAGE_LIST,
        max_completion_tokens=_limited(
            'max_tokens',
            'Tokens of a reply, at most; by default what is left.',
            'integer',
            minimum=1,
        ),
        max_tokens=_limited(
            'max_tokens', 'The same, by its older name.', 'integer', minimum=1
        ),
        **SAMPLING,
        logprobs=_boolean("Give each token's log-probability, at temperature 1."),
        top_logprobs=_limited(
            'logprobs', 'Likeliest tokens beside each. With `logprobs`.', 'integer'
        ),
        continue_final_message=_boolean(
            "The last message is the assistant's, and the reply goes on with it."
        ),
        **HARMLESS,
        prediction=_IGNORED,
        parallel_tool_calls=_IGNORED,
        tools=_unsupported('array'),
        functions=_unsupported('array'),
        tool_choice=dict(enum=['none', 'auto', None]),
        function_call=dict(enum=['none', 'auto', None]),
        modalities=dict(type=['array', 'null'], items=dict(enum=['text'])),
    ),
)

PROMPT_IDS = _ids(minItems=1, maxItems=MAX_PROMPT_TOKENS)
COMPLETION = _object(
    ['prompt'],
    dict(
        model=MODEL,
        prompt=dict(
            description=(
                'a string, token ids, or an array of either. Strings are preceded by '
                'the token that begins a document; ids are taken as they are'
            ),
            anyOf=[
                TEXT,
                PROMPT_IDS,
                dict(type='array', items=TEXT, minItems=1, maxItems=MAX_PROMPTS),
                dict(type='array', items=PROMPT_IDS, minItems=1, maxItems=MAX_PROMPTS),
            ],
        ),
        max_tokens=_limited(
            'max_tokens',
            'Tokens of a reply, at most; 0 with `echo` only. 16.',
            'integer',
        ),
        **SAMPLING,
        echo=_boolean('Give the prompt back before the reply.'),
        logprobs=_limited(
            'logprobs', 'Log-probabilities, with so many alternatives.', 'integer'
        ),
        best_of=_integer(1, MAX_CHOICES, 'Not supported: leave it out, or equal to n.'),
        suffix=dict(type=['string', 'null'], maxLength=0, description='Unsupported.'),
        **HARMLESS,
    ),
)

TOKENIZE = dict(
    type='object',
    description='`prompt` or `messages`.',
    properties=dict(
        model=MODEL,
        prompt=TEXT,
        messages=MESSAGE_LIST,
        add_special_tokens=_boolean(
            'Put the token that begins a document before `prompt`. true.'
        ),
        continue_final_message=_boolean('As in chat.'),
        return_token_strs=_boolean('Give the texts of the tokens too.'),
    ),
    additionalProperties=False,
)

DETOKENIZE = _object(
    ['tokens'], dict(model=MODEL, tokens=_ids(maxItems=MAX_PROMPT_TOKENS))
)


# ---- validation ---------------------------------------------------------------

UNSUPPORTED = 'unsupported_parameter'
TYPES = {  # of JSON Schema: what a message calls it, and whether a value is one
    'string': ('a string', lambda x: isinstance(x, str)),
    'boolean': ('true or false', lambda x: isinstance(x, bool)),
    'integer': (
        'a whole number',
        lambda x: _is_int(x) or (isinstance(x, float) and x.is_integer()),
    ),
    'number': (
        'a number',
        lambda x: _is_int(x) or (isinstance(x, float) and math.isfinite(x)),
    ),
    'array': ('an array', lambda x: isinstance(x, list)),
    'object': ('an object', lambda x: isinstance(x, dict)),
    'null': ('null', lambda x: x is None),
}


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_type(value, name):
    return TYPES[name][1](value)


def validate_body(body: dict, schema: dict) -> dict:
    """The fields of a valid body (ApiError 400) that are not null."""
    validate(body, schema)
    return {name: value for name, value in body.items() if value is not None}


def validate(value: Any, schema: dict, path: str = '') -> None:
    """Returns if `value`, parsed JSON at `path` of the body, is as `schema` says.

    `schema` may use type, enum, minimum, maximum, exclusiveMinimum, minLength,
    maxLength, pattern, minItems, maxItems, items, properties, required,
    additionalProperties, propertyNames, maxProperties and anyOf.

    Raises:
        ApiError: 400; it names the field and what to use.
    """
    if 'anyOf' in schema:
        return _validate_any(value, schema, path)
    types = schema.get('type', list(TYPES))
    types = [types] if isinstance(types, str) else types
    if not any(_is_type(value, name) for name in types):
        words = [TYPES[name][0] for name in types if name != 'null'] or ['null']
        raise _wrong(path, value, ' or '.join(words), 'invalid_type')
    if 'enum' in schema and value not in schema['enum']:
        options = ('null' if x is None else str(x) for x in schema['enum'])
        raise _wrong(path, value, ', '.join(options))
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        _validate_number(value, schema, path)
    elif isinstance(value, str):
        _validate_length(len(value), schema, path, 'Length', 'characters')
        if 'pattern' in schema and not re.search(schema['pattern'], value):
            raise _wrong(path, value, f'a string like {schema["pattern"]}')
    elif isinstance(value, list):
        _validate_length(len(value), schema, path, 'Items', 'items')
        for index, item in enumerate(value):
            validate(item, schema.get('items', {}), f'{path}[{index}]')
    else:
        _validate_object(value, schema, path)


def _validate_any(value, schema, path):
    """One of several options; the error is of the one that has the value's type."""
    errors = []
    for option in schema['anyOf']:
        try:
            return validate(value, option, path)
        except ApiError as error:
            if _is_type(value, option['type']):
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise _wrong(path, value, schema['description'], 'invalid_type')


def _validate_number(value, schema, path):
    low, high = schema.get('minimum'), schema.get('maximum')
    above = schema.get('exclusiveMinimum')
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        first = f'above {above}' if low is None else f'from {low}'
        raise _wrong(path, value, f'a number {first} to {high}')


def _validate_length(length, schema, path, suffix, unit):
    low, high = schema.get(f'min{suffix}', 0), schema.get(f'max{suffix}')
    if length < low:
        raise bad_request(path, f'it has {length} {unit}: give {low} or more')
    if high is not None and length > high:
        raise bad_request(path, f'it has {length:,} {unit}: give {high:,} at most')


def _validate_object(value, schema, path):
    prefix = f'{path}.' if path else ''
    properties = schema.get('properties', {})
    additional = schema.get('additionalProperties', True)
    if len(value) > schema.get('maxProperties', len(value)):
        limit = schema['maxProperties']
        raise bad_request(path, f'it has {len(value):,} entries: give {limit} at most')
    for name in schema.get('required', ()):
        if name not in value:
            raise bad_request(f'{prefix}{name}', 'it is missing', 'missing_parameter')
    for name, item in value.items():
        item_path = f'{prefix}{name[:60]}'
        if name in properties:
            validate(item, properties[name], item_path)
        elif additional is False:
            raise bad_request(
                item_path, 'this server does not have it: leave it out', UNSUPPORTED
            )
        elif isinstance(additional, dict):
            validate(name, schema.get('propertyNames', {}), item_path)
            validate(item, additional, item_path)


def _wrong(path, value, wanted, code='invalid_value'):
    shown = repr(value)
    if len(shown) > 60:
        shown = f'{shown[:56]} …'
    if not path:
        return bad_request(None, f'the body is {shown}: send {wanted}', code)
    return ApiError(400, f'{path}={shown}: use {wanted}', code, path)
