"""The routes of the API, and the ASGI application."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gptjax.data.chat_template import JINJA
from gptjax.serve import api_requests, schemas
from gptjax.serve.admission import ServerState
from gptjax.serve.api_errors import ApiError
from gptjax.serve.api_requests import ServedModel, find_model, read_body
from gptjax.serve.openapi import Operation, document
from gptjax.serve.responses import ChatAnswer, CompletionAnswer, generate, token_text
from gptjax.serve.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    JsonResponse,
    Status,
)
from gptjax.serve.security import Guard, content_policy

PAGE = Path(__file__).with_name('page.html')

log = logging.getLogger(__name__)


def make_app(state: ServerState, hosts: Iterable[str], key: str | None) -> Guard:
    """The ASGI application; for `hosts` and `key` see `Guard`."""
    app = Starlette(
        routes=[
            Route(op.path, op.handler, methods=['POST'] if op.request else ['GET'])
            for op in OPERATIONS
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _any_error,
        },
    )
    app.state.server = state
    app.router.redirect_slashes = False
    return Guard(app, hosts, key)


def _ready_state(request: Request) -> ServerState:
    """The server's state; ApiError 503 if no model can answer."""
    state = request.app.state.server
    state.check_ready()
    return state


# ---- errors -------------------------------------------------------------------


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """404 and 405, which the router raises."""
    path, method = request.url.path[:100], request.method
    message, code = {
        404: (f'{path}: no such address', 'not_found'),
        405: (f'{method} {path}: no such method here', 'method_not_allowed'),
    }.get(error.status_code, (str(error.detail), None))
    answer = ApiError(error.status_code, message, code)
    answer.headers.update(error.headers or {})
    return answer.response()


async def _any_error(request: Request, error: Exception) -> Response:
    # Starlette raises the error again, and uvicorn logs it.
    log.error('%s %s: %s', request.method, request.url.path, type(error).__name__)
    return ApiError(500, 'internal error of the server', 'internal_error').response()


# ---- page, health, metrics, models --------------------------------------------


async def _page(request: Request) -> Response:
    """The chat page."""
    text = PAGE.read_text(encoding='utf-8')
    policy = content_policy(text)
    headers = {'Content-Security-Policy': policy, 'Cache-Control': 'no-cache'}
    return HTMLResponse(text, headers=headers)


async def _health(request: Request) -> Response:
    """Whether the process runs; needs no key."""
    return JsonResponse(Status(status='ok'))


async def _ready(request: Request) -> Response:
    """Whether any model can reply; ?model=ID: whether this one can."""
    state = _ready_state(request)
    status = Status(status='ready')
    if name := request.query_params.get('model'):
        state.check_ready(find_model(state.models, name))
    elif failures := state.failures():
        status.failed = failures
    return JsonResponse(status)


async def _metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    telemetry = request.app.state.server.telemetry
    headers = {'Content-Type': telemetry.content_type}
    return Response(telemetry.render(), headers=headers)


async def _openapi(request: Request) -> Response:
    """This document."""
    return JSONResponse(document(OPERATIONS))


def _describe(model: ServedModel) -> schemas.Model:
    context = model.engine.context
    return schemas.Model(
        id=model.id,
        object='model',
        created=model.created,
        owned_by='gptjax',
        max_model_len=context,
        gptjax=schemas.ModelFacts(
            step=model.step,
            template=model.template,
            context=context,
            description=model.description,
            fingerprint=model.engine.fingerprint,
        ),
    )


async def _models(request: Request) -> Response:
    """The served models."""
    data = [_describe(model) for model in _ready_state(request).models.values()]
    return JsonResponse(schemas.ModelList(object='list', data=data))


async def _model(request: Request) -> Response:
    """One of the served models."""
    models = _ready_state(request).models
    return JsonResponse(_describe(find_model(models, request.path_params['id'])))


async def _model_card(request: Request) -> Response:
    """What the files of the first model's run say about it; ?model=ID for another."""
    models = _ready_state(request).models
    return JsonResponse(find_model(models, request.query_params.get('model')).card)


# ---- tokens -------------------------------------------------------------------


async def _tokenize(request: Request) -> Response:
    """The tokens of a text."""
    state = _ready_state(request)
    body = await read_body(request, schemas.TokenizeRequest)
    model = find_model(state.models, body.model)

    def respond() -> Response:
        tokens = api_requests.encode_prompt(body, model)
        context = model.engine.context
        content = schemas.Tokens(
            count=len(tokens), max_model_len=context, tokens=tokens
        )
        if body.return_token_strs:
            content.token_strs = [token_text(model.tokenizer, x) for x in tokens]
        return JsonResponse(content)

    return await asyncio.to_thread(respond)


async def _detokenize(request: Request) -> Response:
    """The text of tokens."""
    state = _ready_state(request)
    body = await read_body(request, schemas.DetokenizeRequest)
    model = find_model(state.models, body.model)
    tokens = api_requests.check_token_ids(body.tokens, model, 'tokens')
    text = await asyncio.to_thread(model.tokenizer.decode, tokens)
    return JsonResponse(schemas.Text(prompt=text))


async def _tokenizer_info(request: Request) -> Response:
    """The first model's tokenizer; ?model=ID for another."""
    state = _ready_state(request)
    model = find_model(state.models, request.query_params.get('model'))
    tokenizer = model.tokenizer
    names = {token: name for name, token in tokenizer.specials.items()}
    # For clients that write the prompt of a conversation themselves, as text. Text
    # cannot express special tokens, so a template that writes some is not given.
    jinja = JINJA['text'] if model.template == 'text' else None
    content = schemas.TokenizerInfo(
        tokenizer_class=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        model_max_length=model.engine.context,
        fingerprint=tokenizer.fingerprint,
        special_tokens=tokenizer.specials,
        chat_template=jinja,
        bos_token=names.get(tokenizer.bos_id),
        bos_token_id=tokenizer.bos_id,
        eos_token=names.get(tokenizer.eos_id),
        eos_token_id=tokenizer.eos_id,
        pad_token=names.get(tokenizer.pad_id),
        pad_token_id=tokenizer.pad_id,
    )
    return JsonResponse(content)


# ---- replies ------------------------------------------------------------------


async def _chat(request: Request) -> Callable:
    """The next message of a conversation."""
    parse_request = api_requests.parse_chat_request
    return await generate(request, 'chat', ChatRequest, parse_request, ChatAnswer)


async def _completions(request: Request) -> Callable:
    """The continuation of a text."""
    parse_request, name = api_requests.parse_completion_request, 'completions'
    return await generate(
        request, name, CompletionRequest, parse_request, CompletionAnswer
    )


# ---- routes -------------------------------------------------------------------

OPERATIONS = (
    Operation('/', _page, 'text/html'),
    Operation('/health', _health, Status),
    Operation('/ready', _ready, Status, query='model'),
    Operation('/metrics', _metrics, 'text/plain'),
    Operation('/openapi.json', _openapi, 'application/json'),
    Operation('/v1/models', _models, schemas.ModelList),
    Operation('/v1/models/{id:path}', _model, schemas.Model),
    Operation('/model_card', _model_card, schemas.ModelCard, query='model'),
    Operation(
        '/v1/chat/completions', _chat, ChatCompletion, ChatRequest, schemas.ChatChunk
    ),
    Operation(
        '/v1/completions', _completions, Completion, CompletionRequest, Completion
    ),
    Operation('/tokenize', _tokenize, schemas.Tokens, schemas.TokenizeRequest),
    Operation('/detokenize', _detokenize, schemas.Text, schemas.DetokenizeRequest),
    Operation('/tokenizer_info', _tokenizer_info, schemas.TokenizerInfo, query='model'),
)
