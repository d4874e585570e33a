"""From the body of an HTTP request to a request for replies by the engine."""

import asyncio
import contextlib
import json
import secrets
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.requests import Request

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.data.sources.records import parse_message
from gptjax.infer.request import LARGEST_SEED, LIMITS, SamplingParameters
from gptjax.serve.api_errors import UNSUPPORTED, ApiError, bad_request, invalid_body
from gptjax.serve.grammar import GrammarCompiler, schema_of_format
from gptjax.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    Message,
    ModelCard,
    Schema,
    TokenizeRequest,
)

MAX_BODY_BYTES = 2**20
DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as clients expect
READ_SECONDS = 30.0  # within which the body of a request has to arrive
# A client that is still sending does not read a response. So the server reads and drops
# the rest of a body that is too long for a while: then the client learns the reason.
MAX_DROPPED_BYTES = 64 * 2**20
DROP_SECONDS = 5.0


class ServedModel(NamedTuple):
    """A model that draws replies."""

    id: str  # the run directory's name; 'NAME@STEP' where a step was given
    engine: Any  # an `infer.engine.Engine`, started
    grammars: GrammarCompiler
    template: str  # the prompt format of chats, 'text' or 'turns'
    step: int
    created: int  # when the checkpoint was written, in seconds since 1970
    description: str  # one line for people
    card: ModelCard

    @property
    def tokenizer(self):
        return self.engine.tokenizer


class GenerationRequest(NamedTuple):
    """A valid request for replies."""

    model: ServedModel
    prompts: list[list[int]]  # token ids, for each reply
    parameters: list[SamplingParameters]  # for each reply
    echoed_texts: list[str]  # the prompt of each reply as text; empty without `echo`
    prompt_field: str  # the field of the body that holds the prompts
    logprobs: bool  # whether the response shows log-probabilities
    stream: bool
    include_usage: bool  # whether the last event of a stream counts tokens
    num_prompt_tokens: int  # a prompt that several replies share counts once


# ---- the body -----------------------------------------------------------------


async def read_body(request: Request, model_class: type[Schema]) -> Schema:
    """The body of a request, as an instance of `model_class`.

    Raises:
        ApiError: 413 longer than `MAX_BODY_BYTES`; 415 another Content-Type than JSON;
            408 too slow; 400 incomplete, or does not fit `model_class`.
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
                if num_bytes <= MAX_BODY_BYTES:
                    content += message.get('body', b'')
                elif content:
                    content.clear()
                    now = asyncio.get_running_loop().time()
                    limit.reschedule(now + DROP_SECONDS)
    except TimeoutError:
        if num_bytes <= MAX_BODY_BYTES:
            message = f'the body took over {READ_SECONDS:.0f} s'
            raise ApiError(408, message, 'timeout', retry=False) from None
    if num_bytes > MAX_BODY_BYTES:
        message = f'the body is longer than {MAX_BODY_BYTES:,} bytes: send less'
        raise ApiError(413, message, 'body_too_large')
    try:
        return model_class.model_validate_json(bytes(content))
    except ValidationError as error:
        raise invalid_body(error, bytes(content)) from None


def find_model(models: dict[str, ServedModel], name: str | None) -> ServedModel:
    """The model with this id (ApiError 404); by default the first one."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f'model={name[:100]!r}: no such model: use one of {", ".join(models)}'
        raise ApiError(404, message, 'model_not_found', 'model')
    return models[name]


# ---- requests for replies; all raise ApiError: 404 for the model, else 400 ----


def parse_chat_request(
    body: ChatRequest, models: dict[str, ServedModel]
) -> GenerationRequest:
    model = find_model(models, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request('top_logprobs', 'it needs logprobs=true')
    prompt = encode_messages(body, model)
    stop, stop_tokens = chat_template.stop_conditions(model.template, model.tokenizer)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request('max_tokens', 'it differs from max_completion_tokens')
    return _build_request(
        body,
        model,
        [prompt],
        [],
        max_tokens=limits.pop() if limits else LIMITS['max_tokens'].most,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        chat_stop=stop,
        stop_tokens=stop_tokens,
    )


def parse_completion_request(
    body: CompletionRequest, models: dict[str, ServedModel]
) -> GenerationRequest:
    model = find_model(models, body.model)
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = DEFAULT_COMPLETION_TOKENS
    if max_tokens == 0 and not body.echo:
        raise bad_request('max_tokens', 'use 1 or more, or echo=true')
    if body.best_of not in (None, body.n or 1):
        raise bad_request('best_of', 'it is not supported: leave it out', UNSUPPORTED)
    prompts, tokenizer = body.prompt, model.tokenizer
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    prompts = [
        chat_template.encode_text_prompt(prompt, tokenizer)
        if isinstance(prompt, str)
        else check_token_ids(prompt, model, 'prompt')
        for prompt in prompts
    ]
    return _build_request(
        body,
        model,
        prompts,
        [tokenizer.decode(prompt) for prompt in prompts] if body.echo else [],
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )


SAMPLING_NUMBERS = LIMITS.keys() - {'max_tokens', 'seed', 'logprobs'}


def _build_request(
    body, model, prompts, texts, chat_stop=(), **sampling
) -> GenerationRequest:
    """A request for n replies to each prompt, whose seeds follow one another."""
    if body.stream_options is not None and not body.stream:
        raise bad_request('stream_options', 'it needs stream=true')
    sampling |= body.model_dump(include=SAMPLING_NUMBERS, exclude_none=True)
    logit_bias = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    check_token_ids(list(logit_bias), model, 'logit_bias')
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    n, first_seed = body.n or 1, body.seed
    if first_seed is None:
        first_seed = secrets.randbelow(LARGEST_SEED + 1)
    num_replies = n * len(prompts)
    grammars = [None] * num_replies
    schema = schema_of_format(body.response_format)
    if schema is not None:
        grammars = model.grammars.compile_schema(schema, num_replies)
    parameters = [
        SamplingParameters(
            **sampling,
            logit_bias=logit_bias,
            stop=(*stop, *chat_stop),
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
        prompt_field='messages' if isinstance(body, ChatRequest) else 'prompt',
        logprobs=sampling['logprobs'] is not None,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        num_prompt_tokens=sum(map(len, prompts)),
    )


# ---- prompts ------------------------------------------------------------------


def encode_messages(
    body: ChatRequest | TokenizeRequest, model: ServedModel
) -> list[int]:
    """The token ids of a conversation, up to where the assistant's reply begins."""
    own = chat_template.uses_jinja(model.tokenizer, model.template)
    if body.tools and not own:
        raise bad_request('tools', 'the chat template takes none: leave it out')
    read = _read_for_template if own else _read_message
    messages = [read(message, n) for n, message in enumerate(body.messages)]
    continue_final = bool(body.continue_final_message)
    if continue_final and messages[-1]['role'] != 'assistant':
        message = "the last message is not the assistant's"
        raise bad_request('continue_final_message', message)
    try:
        return chat_template.encode_prompt(
            messages, model.tokenizer, model.template, continue_final, body.tools
        )
    except UserError as error:
        raise bad_request('messages', str(error)) from error


def _read_message(message: Message, number: int) -> dict:
    """A message for a template of ours, which has three roles."""
    location = f'messages[{number}]'
    if message.role == 'tool':
        raise bad_request(f'{location}.role', "use 'system', 'user' or 'assistant'")
    for name in ('name', 'tool_calls', 'tool_call_id'):
        if getattr(message, name):
            reason = 'the chat template of this model takes none: leave it out'
            raise bad_request(f'{location}.{name}', reason)
    if message.content is None:
        raise bad_request(
            f'{location}.content', 'it is missing: send a string or an array'
        )
    return parse_message(message.model_dump(), location)


def _read_for_template(message: Message, number: int) -> dict:
    """A message for the template of an imported model, which decides what it takes."""
    content = message.content or ''
    if not isinstance(content, str):
        content = ''.join(part.text for part in content)
    role = 'system' if message.role == 'developer' else message.role
    if message.content is None and not message.tool_calls:
        raise bad_request(
            f'messages[{number}].content', 'it is missing: send a string or an array'
        )
    given = message.model_dump(
        include={'name', 'tool_calls', 'tool_call_id'}, exclude_none=True
    )
    for call in given.get('tool_calls', ()):
        # Templates write the arguments as JSON, and clients send JSON in a string.
        with contextlib.suppress(ValueError, TypeError):
            try:
                arguments = json.loads(call['function']['arguments'])
            except RecursionError:
                raise bad_request(
                    f'messages[{number}].tool_calls', 'nested too deeply: send less'
                ) from None
            call['function']['arguments'] = arguments
    return dict(given, role=role, content=content)


def check_token_ids(tokens: list[int], model: ServedModel, field: str) -> list[int]:
    """The same ids; ApiError 400 where the vocabulary has no such id."""
    size = model.tokenizer.vocab_size
    if tokens and max(tokens) >= size:
        raise bad_request(
            field, f'no token has the id {max(tokens)}: use 0 to {size - 1}'
        )
    return tokens


def encode_prompt(body: TokenizeRequest, model: ServedModel) -> list[int]:
    """The token ids for /tokenize.

    A prompt that is exactly the name of a special token becomes this token, so that
    clients can look up its id. Within a longer text the name is plain text.
    """
    if (body.prompt is None) == (body.messages is None):
        raise bad_request('prompt', 'send one of prompt and messages')
    if body.messages is not None:
        return encode_messages(body, model)
    tokenizer = model.tokenizer
    if body.add_special_tokens is not False:
        return chat_template.encode_text_prompt(body.prompt, tokenizer)
    if body.prompt in tokenizer.specials:
        return [tokenizer.specials[body.prompt]]
    return tokenizer.encode(body.prompt)
