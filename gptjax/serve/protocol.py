"""From the body of a request to what the engine is asked."""

import json
import secrets
from typing import Any, NamedTuple

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.infer.request import LARGEST_SEED, LIMITS, Parameters, check_parameters
from gptjax.serve import grammar, schemas
from gptjax.serve.api_errors import ApiError, bad_request
from gptjax.serve.request_checks import UNSUPPORTED, check

DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as clients expect


class Served(NamedTuple):
    """A model that the server has.

    id: the run directory's name, 'NAME@STEP' for a checkpoint that was named.
    engine: an `infer.engine.Engine`, started.
    grammars: of its tokenizer.
    template: how its conversations read, 'text' or 'turns'.
    step: of the checkpoint.
    created: when the checkpoint was written, in seconds since 1970.
    description: a line for people.
    """

    id: str
    engine: Any
    grammars: grammar.Grammars
    template: str
    step: int
    created: int
    description: str

    @property
    def tokenizer(self):
        return self.engine.tokenizer


class Call(NamedTuple):
    """A request for replies, understood: requests to the engine, in order.

    prompts: token ids, one list for each reply that is asked for.
    parameters: of each.
    texts: each prompt as it is echoed; empty where it is not.
    param: the field that the prompts are from.
    logprobs: whether the answer shows them.
    stream: whether it comes in pieces, with `include_usage` a last that counts.
    prompt_tokens: of all prompts; one that several replies share counts once.
    """

    model: Served
    prompts: list[list[int]]
    parameters: list[Parameters]
    texts: list[str]
    param: str
    logprobs: bool
    stream: bool
    include_usage: bool
    prompt_tokens: int


def parse_json(content: bytes) -> dict:
    """The JSON object of a body.

    Raises:
        ApiError: 400; no UTF-8, no JSON, no object, or half a character in a text.
    """
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError as error:
        raise bad_request(
            None, f'the body is no UTF-8 (byte {error.start}): send JSON in UTF-8'
        ) from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request(
            None, 'a text has half a character (a lone surrogate): leave it out'
        ) from None
    except (ValueError, RecursionError) as error:
        raise bad_request(
            None, f'the body is no JSON ({error}): send a JSON object', 'invalid_json'
        ) from None
    if not isinstance(value, dict):
        raise bad_request(None, 'the body is no object: send a JSON object')
    return value


def _no_constant(word):
    raise ValueError(f'{word} is no JSON number')


def checked(body: dict, schema: dict) -> dict:
    """The fields of `body` that say something: those that are null are left out.

    Raises:
        ApiError: 400; it is not as `schema` says.
    """
    check(body, schema)
    return {name: value for name, value in body.items() if value is not None}


def find_model(models: dict[str, Served], name: str | None) -> Served:
    """The model of that id; the first where none is named.

    Raises:
        ApiError: 404.
    """
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise ApiError(
            404,
            f'model={name[:100]!r}: no such model: use one of {", ".join(models)}',
            'model_not_found',
            'model',
        )
    return models[name]


# ---- the two kinds ------------------------------------------------------------


def chat_call(body: dict, models: dict[str, Served]) -> Call:
    """What a body of /v1/chat/completions asks for.

    Raises:
        ApiError: 400, or 404 for the model.
    """
    body = checked(body, schemas.CHAT)
    model = find_model(models, body.get('model'))
    if 'top_logprobs' in body and not body.get('logprobs'):
        raise bad_request('top_logprobs', 'it needs logprobs=true')
    prompt = chat_prompt(body, model)
    texts, tokens = chat_template.stops_of(model.template, model.tokenizer)
    most = body.get('max_completion_tokens', body.get('max_tokens'))
    if most != body.get('max_tokens', most):
        raise bad_request('max_tokens', 'it differs from max_completion_tokens')
    settings = _settings(body, model)
    settings.update(
        max_tokens=LIMITS['max_tokens'].most if most is None else int(most),
        logprobs=int(body.get('top_logprobs', 0)) if body.get('logprobs') else None,
        stop=(*settings['stop'], *texts),
        stop_tokens=tokens,
    )
    return _call(body, model, [prompt], [], settings)


def chat_prompt(body: dict, model: Served) -> list[int]:
    """The token ids of a conversation, up to where the assistant speaks."""
    messages = [
        dict(role=ROLES.get(m['role'], m['role']), content=_text(m['content']))
        for m in body['messages']
    ]
    go_on = bool(body.get('continue_final_message'))
    if go_on and messages[-1]['role'] != 'assistant':
        raise bad_request(
            'continue_final_message', "the last message is not the assistant's"
        )
    try:
        return chat_template.prompt_of(messages, model.tokenizer, model.template, go_on)
    except UserError as error:
        raise bad_request('messages', str(error)) from error


ROLES = {'developer': 'system'}


def completion_call(body: dict, models: dict[str, Served]) -> Call:
    """What a body of /v1/completions asks for.

    Raises:
        ApiError: 400, or 404 for the model.
    """
    body = checked(body, schemas.COMPLETION)
    model = find_model(models, body.get('model'))
    echo = bool(body.get('echo'))
    most = int(body.get('max_tokens', DEFAULT_COMPLETION_TOKENS))
    if most == 0 and not echo:
        raise bad_request('max_tokens', 'use 1 or more, or echo=true')
    if body.get('best_of', body.get('n', 1)) != body.get('n', 1):
        raise bad_request('best_of', 'it is not supported: leave it out', UNSUPPORTED)
    prompt = body['prompt']
    several = isinstance(prompt, list) and not isinstance(prompt[0], int | float)
    prompts = [_ids(prompt, model) for prompt in (prompt if several else [prompt])]
    logprobs = body.get('logprobs')
    settings = _settings(body, model)
    settings.update(
        max_tokens=most,
        logprobs=None if logprobs is None else int(logprobs),
        prompt_logprobs=echo and logprobs is not None,
    )
    texts = [model.tokenizer.decode(tokens) for tokens in prompts] if echo else []
    return _call(body, model, prompts, texts, settings)


def _ids(prompt: str | list, model: Served) -> list[int]:
    if isinstance(prompt, str):
        return [model.tokenizer.bos_id, *model.tokenizer.encode(prompt)]
    return known_tokens(prompt, model, 'prompt')


def known_tokens(tokens: list, model: Served, param: str) -> list[int]:
    """The ids as integers.

    Raises:
        ApiError: 400; the vocabulary has no such id.
    """
    size = model.tokenizer.vocab_size
    if tokens and max(tokens) >= size:
        largest = int(max(tokens))
        raise bad_request(param, f'no token has the id {largest}: use 0 to {size - 1}')
    return [int(token) for token in tokens]


def tokens_of(body: dict, model: Served) -> list[int]:
    """The token ids of a checked body of /tokenize.

    A prompt that is a special token's name and nothing else is that token, so that
    clients find its id; within a text it is text.

    Raises:
        ApiError: 400; neither `prompt` nor `messages`, or both.
    """
    if ('prompt' in body) == ('messages' in body):
        raise bad_request('prompt', 'send one of prompt and messages')
    if 'messages' in body:
        return chat_prompt(body, model)
    tokenizer, prompt = model.tokenizer, body['prompt']
    begin = [tokenizer.bos_id] if body.get('add_special_tokens', True) else []
    if not begin and prompt in tokenizer.specials:
        return [tokenizer.specials[prompt]]
    return [*begin, *tokenizer.encode(prompt)]


def _settings(body: dict, model: Served) -> dict:
    """The fields of `Parameters` that both kinds share, but for the seed."""
    stop = body.get('stop', ())
    bias = body.get('logit_bias', {})
    integers = {name: int(body[name]) for name in ('top_k',) if name in body}
    floats = {name: float(body[name]) for name in FLOATS if name in body}
    settings = dict(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logit_bias={int(token): float(added) for token, added in bias.items()},
        **integers,
        **floats,
    )
    try:
        check_parameters(Parameters(**settings), model.tokenizer.vocab_size)
    except UserError as error:
        raise bad_request(str(error).split('=')[0].split()[0], str(error)) from error
    return settings


FLOATS = (
    'temperature',
    'top_p',
    'min_p',
    'repetition_penalty',
    'presence_penalty',
    'frequency_penalty',
)


def _call(body, model, prompts, texts, settings) -> Call:
    """n replies to each prompt: their seeds follow each other."""
    options = body.get('stream_options')
    if options is not None and not body.get('stream'):
        raise bad_request('stream_options', 'it needs stream=true')
    n = int(body.get('n', 1))
    first = int(body.get('seed', secrets.randbelow(LARGEST_SEED + 1)))
    schema = grammar.schema_of(body.get('response_format'))
    total = n * len(prompts)
    grammars = [None] * total
    if schema is not None:
        grammars = model.grammars.json(schema, total)
    parameters = [
        Parameters(
            **settings,
            seed=(first + number % n) % (LARGEST_SEED + 1),
            grammar=grammars[number],
        )
        for number in range(total)
    ]
    return Call(
        model=model,
        prompts=[prompt for prompt in prompts for _ in range(n)],
        parameters=parameters,
        texts=[text for text in texts for _ in range(n)],
        param='messages' if 'messages' in body else 'prompt',
        logprobs=settings['logprobs'] is not None,
        stream=bool(body.get('stream')),
        include_usage=bool((options or {}).get('include_usage')),
        prompt_tokens=sum(map(len, prompts)),
    )


def _text(content: str | list[dict]) -> str:
    """A message's text; that of several parts is joined."""
    if isinstance(content, str):
        return content
    return ''.join(part['text'] for part in content)
