"""From an HTTP request's body to a request for replies that the engine understands."""

import asyncio
import json
import secrets
from typing import Any, NamedTuple

from starlette.requests import Request

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.infer.request import (
    LARGEST_SEED,
    LIMITS,
    SamplingParameters,
    check_parameters,
)
from gptjax.serve import schemas
from gptjax.serve.api_errors import ApiError, bad_request
from gptjax.serve.grammar import GrammarCompiler, schema_of_format
from gptjax.serve.schemas import UNSUPPORTED, validate_body

DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as clients expect
READ_SECONDS = 30.0  # that the body of a request may take
# A client that still sends reads no answer. So the server reads on for a while what is
# too long, and drops it: then the client learns why it was refused.
MAX_DROPPED_BYTES = 64 * 2**20
DROP_SECONDS = 5.0


class ServedModel(NamedTuple):
    """A model that the server answers with."""

    id: str  # the run directory's name, 'NAME@STEP' for a checkpoint that was named
    engine: Any  # an `infer.engine.Engine`, started
    grammars: GrammarCompiler
    template: str  # of its chat prompts, 'text' or 'turns'
    step: int
    created: int  # when the checkpoint was written, in seconds since 1970
    description: str  # a line for people

    @property
    def tokenizer(self):
        return self.engine.tokenizer


class GenerationRequest(NamedTuple):
    """A valid request for replies."""

    model: ServedModel
    prompts: list[list[int]]  # token ids of each reply's prompt
    parameters: list[SamplingParameters]  # of each reply
    echoed_texts: list[str]  # the prompt of each reply as text; empty without `echo`
    prompt_field: str  # the body's field that holds the prompts
    logprobs: bool  # whether the answer shows log-probabilities
    stream: bool
    include_usage: bool  # whether a stream's last event counts tokens
    num_prompt_tokens: int  # a prompt that several replies share counts once


# ---- the body -----------------------------------------------------------------


async def read_body(request: Request) -> dict:
    """The JSON object of a request, of `MAX_BODY_BYTES` at most, whatever it claims.

    ApiError: 413 too long, 415 not JSON by its type, 408 too slow, 400 broken off or
    refused by `parse_json`.
    """
    header = request.headers.get('content-type', '')
    media_type = header.partition(';')[0].strip().lower()
    if media_type != 'application/json':
        message = f'Content-Type is {media_type[:60]!r}: send application/json'
        raise ApiError(415, message, 'unsupported_media_type')
    content = bytearray()
    num_bytes = 0
    try:
        async with asyncio.timeout(READ_SECONDS) as limit:
            more = True
            while more and num_bytes <= MAX_DROPPED_BYTES:
                message = await request.receive()
                if message['type'] == 'http.disconnect':
                    raise ApiError(400, 'the body broke off', 'incomplete_body')
                more = message.get('more_body', False)
                num_bytes += len(message.get('body', b''))
                if num_bytes <= schemas.MAX_BODY_BYTES:
                    content += message.get('body', b'')
                elif content:
                    content.clear()
                    now = asyncio.get_running_loop().time()
                    limit.reschedule(now + DROP_SECONDS)
    except TimeoutError:
        if num_bytes <= schemas.MAX_BODY_BYTES:
            message = f'the body took over {READ_SECONDS:.0f} s'
            raise ApiError(408, message, 'timeout', retry=False) from None
    if num_bytes > schemas.MAX_BODY_BYTES:
        message = f'the body is longer than {schemas.MAX_BODY_BYTES:,} bytes: send less'
        raise ApiError(413, message, 'body_too_large')
    return parse_json(bytes(content))


def parse_json(content: bytes) -> dict:
    """The JSON object of a body; ApiError 400 where it holds none."""
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError as error:
        message = f'the body is no UTF-8 (byte {error.start}): send JSON in UTF-8'
        raise bad_request(None, message) from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = 'a text has half a character (a lone surrogate): leave it out'
        raise bad_request(None, message) from None
    except (ValueError, RecursionError) as error:
        message = f'the body is no JSON ({error}): send a JSON object'
        raise bad_request(None, message, 'invalid_json') from None
    if not isinstance(value, dict):
        raise bad_request(None, 'the body is no object: send a JSON object')
    return value


def _refuse_constant(word):
    raise ValueError(f'{word} is no JSON number')


def find_model(models: dict[str, ServedModel], name: str | None) -> ServedModel:
    """The model of that id (ApiError 404); the first where none is named."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f'model={name[:100]!r}: no such model: use one of {", ".join(models)}'
        raise ApiError(404, message, 'model_not_found', 'model')
    return models[name]


# ---- requests for replies: all raise ApiError 400, or 404 for the model -------


def parse_chat_request(body: dict, models: dict[str, ServedModel]) -> GenerationRequest:
    """What a body of /v1/chat/completions asks for."""
    body = validate_body(body, schemas.CHAT)
    model = find_model(models, body.get('model'))
    if 'top_logprobs' in body and not body.get('logprobs'):
        raise bad_request('top_logprobs', 'it needs logprobs=true')
    prompt, tokenizer = encode_messages(body, model), model.tokenizer
    stop_texts, stop_tokens = chat_template.stop_conditions(model.template, tokenizer)
    max_tokens = body.get('max_tokens', LIMITS['max_tokens'].most)
    max_tokens = body.get('max_completion_tokens', max_tokens)
    if max_tokens != body.get('max_tokens', max_tokens):
        raise bad_request('max_tokens', 'it differs from max_completion_tokens')
    sampling = _parse_sampling(body, model)
    sampling.update(
        max_tokens=int(max_tokens),
        logprobs=int(body.get('top_logprobs', 0)) if body.get('logprobs') else None,
        stop=(*sampling['stop'], *stop_texts),
        stop_tokens=stop_tokens,
    )
    return _build_request(body, model, [prompt], [], sampling)


def parse_completion_request(
    body: dict, models: dict[str, ServedModel]
) -> GenerationRequest:
    """What a body of /v1/completions asks for."""
    body = validate_body(body, schemas.COMPLETION)
    model = find_model(models, body.get('model'))
    echo = bool(body.get('echo'))
    max_tokens = int(body.get('max_tokens', DEFAULT_COMPLETION_TOKENS))
    if max_tokens == 0 and not echo:
        raise bad_request('max_tokens', 'use 1 or more, or echo=true')
    if body.get('best_of', body.get('n', 1)) != body.get('n', 1):
        raise bad_request('best_of', 'it is not supported: leave it out', UNSUPPORTED)
    prompts = body['prompt']
    if isinstance(prompts, str) or isinstance(prompts[0], int | float):
        prompts = [prompts]
    tokenizer = model.tokenizer
    prompts = [
        [tokenizer.bos_id, *tokenizer.encode(prompt)]
        if isinstance(prompt, str)
        else check_token_ids(prompt, model, 'prompt')
        for prompt in prompts
    ]
    logprobs = body.get('logprobs')
    sampling = _parse_sampling(body, model)
    sampling.update(
        max_tokens=max_tokens,
        logprobs=None if logprobs is None else int(logprobs),
        prompt_logprobs=echo and logprobs is not None,
    )
    texts = [tokenizer.decode(prompt) for prompt in prompts] if echo else []
    return _build_request(body, model, prompts, texts, sampling)


SAMPLING_NUMBERS = (
    *('temperature', 'top_p', 'min_p'),
    *('repetition_penalty', 'presence_penalty', 'frequency_penalty'),
)


def _parse_sampling(body: dict, model: ServedModel) -> dict:
    """The fields of `SamplingParameters` that both kinds share, but for the seed."""
    stop = body.get('stop', ())
    bias = body.get('logit_bias', {})
    sampling = dict(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logit_bias={int(token): float(added) for token, added in bias.items()},
        **{name: float(body[name]) for name in SAMPLING_NUMBERS if name in body},
    )
    if 'top_k' in body:
        sampling['top_k'] = int(body['top_k'])
    try:
        check_parameters(SamplingParameters(**sampling), model.tokenizer.vocab_size)
    except UserError as error:
        field = str(error).split('=')[0].split()[0]
        raise bad_request(field, str(error)) from error
    return sampling


def _build_request(body, model, prompts, texts, sampling) -> GenerationRequest:
    """A request for n replies to each prompt, whose seeds follow one another."""
    stream_options = body.get('stream_options')
    if stream_options is not None and not body.get('stream'):
        raise bad_request('stream_options', 'it needs stream=true')
    n = int(body.get('n', 1))
    first_seed = int(body.get('seed', secrets.randbelow(LARGEST_SEED + 1)))
    num_replies = n * len(prompts)
    schema, grammars = (
        schema_of_format(body.get('response_format')),
        [None] * num_replies,
    )
    if schema is not None:
        grammars = model.grammars.compile_schema(schema, num_replies)
    parameters = [
        SamplingParameters(
            **sampling,
            seed=(first_seed + index % n) % (LARGEST_SEED + 1),
            grammar=grammars[index],
        )
        for index in range(num_replies)
    ]
    return GenerationRequest(
        model=model,
        prompts=[prompt for prompt in prompts for _ in range(n)],
        parameters=parameters,
        echoed_texts=[text for text in texts for _ in range(n)],
        prompt_field='messages' if 'messages' in body else 'prompt',
        logprobs=sampling['logprobs'] is not None,
        stream=bool(body.get('stream')),
        include_usage=bool((stream_options or {}).get('include_usage')),
        num_prompt_tokens=sum(map(len, prompts)),
    )


# ---- prompts ------------------------------------------------------------------


def encode_messages(body: dict, model: ServedModel) -> list[int]:
    """The token ids of a conversation, up to where the assistant speaks."""
    messages = []
    for message in body['messages']:
        role, content = message['role'], message['content']
        if not isinstance(content, str):
            content = ''.join(part['text'] for part in content)
        role = 'system' if role == 'developer' else role
        messages.append(dict(role=role, content=content))
    continue_final = bool(body.get('continue_final_message'))
    if continue_final and messages[-1]['role'] != 'assistant':
        message = "the last message is not the assistant's"
        raise bad_request('continue_final_message', message)
    try:
        return chat_template.encode_prompt(
            messages, model.tokenizer, model.template, continue_final
        )
    except UserError as error:
        raise bad_request('messages', str(error)) from error


def check_token_ids(tokens: list, model: ServedModel, field: str) -> list[int]:
    """The ids as integers; ApiError 400 where the vocabulary has no such id."""
    size = model.tokenizer.vocab_size
    if tokens and max(tokens) >= size:
        largest = int(max(tokens))
        raise bad_request(field, f'no token has the id {largest}: use 0 to {size - 1}')
    return [int(token) for token in tokens]


def encode_prompt(body: dict, model: ServedModel) -> list[int]:
    """The token ids of a valid body of /tokenize.

    A prompt that is a special token's name and nothing else is that token, so that
    clients find its id; within a text it is text.
    """
    if ('prompt' in body) == ('messages' in body):
        raise bad_request('prompt', 'send one of prompt and messages')
    if 'messages' in body:
        return encode_messages(body, model)
    tokenizer, prompt = model.tokenizer, body['prompt']
    if body.get('add_special_tokens', True):
        return [tokenizer.bos_id, *tokenizer.encode(prompt)]
    if prompt in tokenizer.specials:
        return [tokenizer.specials[prompt]]
    return tokenizer.encode(prompt)
