"""The routes, and the ASGI application of them."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gptjax.serve import api_requests, schemas
from gptjax.serve.admission import ServerState
from gptjax.serve.api_errors import ApiError
from gptjax.serve.api_requests import ServedModel, find_model, read_body
from gptjax.serve.openapi import document
from gptjax.serve.responses import (
    ChatAnswer,
    CompletionAnswer,
    generation_endpoint,
    token_text,
)
from gptjax.serve.schemas import validate_body
from gptjax.serve.security import Guard, content_policy

PAGE = Path(__file__).with_name('page.html')

log = logging.getLogger(__name__)


def make_app(state: ServerState, hosts: Iterable[str], key: str | None) -> Guard:
    """The ASGI application; for `hosts` and `key` see `Guard`."""
    chat = generation_endpoint(
        state, 'chat', api_requests.parse_chat_request, ChatAnswer
    )
    completions = generation_endpoint(
        state, 'completions', api_requests.parse_completion_request, CompletionAnswer
    )
    app = Starlette(
        routes=[
            Route('/', _page()),
            Route('/health', _health),
            Route('/ready', _ready),
            Route('/metrics', _metrics),
            Route('/openapi.json', _openapi),
            Route('/v1/models', _models),
            Route('/v1/models/{id:path}', _model),
            Route('/v1/chat/completions', chat, methods=['POST']),
            Route('/v1/completions', completions, methods=['POST']),
            Route('/tokenize', _tokenize, methods=['POST']),
            Route('/detokenize', _detokenize, methods=['POST']),
            Route('/tokenizer_info', _tokenizer_info),
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
        405: (f'{method} {path}: not this way', 'method_not_allowed'),
    }.get(error.status_code, (str(error.detail), None))
    answer = ApiError(error.status_code, message, code)
    answer.headers.update(error.headers or {})
    return answer.response()


async def _any_error(request: Request, error: Exception) -> Response:
    # Starlette raises the error again, and uvicorn logs it.
    log.error('%s %s: %s', request.method, request.url.path, type(error).__name__)
    return ApiError(500, 'the server made a mistake', 'internal_error').response()


# ---- page, health, metrics, models --------------------------------------------


def _page():
    text = PAGE.read_text(encoding='utf-8')
    policy = content_policy(text)
    headers = {'Content-Security-Policy': policy, 'Cache-Control': 'no-cache'}

    async def page(request: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return page


async def _health(request: Request) -> Response:
    return JSONResponse(dict(status='ok'))


async def _ready(request: Request) -> Response:
    """Whether any model can answer; ?model=ID: whether this one can."""
    state = _ready_state(request)
    content = dict(status='ready')
    if name := request.query_params.get('model'):
        state.check_ready(find_model(state.models, name))
    elif failures := state.failures():
        content['failed'] = failures
    return JSONResponse(content)


async def _metrics(request: Request) -> Response:
    telemetry = request.app.state.server.telemetry
    headers = {'Content-Type': telemetry.content_type}
    return Response(telemetry.render(), headers=headers)


async def _openapi(request: Request) -> Response:
    return JSONResponse(document())


def _describe(model: ServedModel) -> dict:
    context = model.engine.context
    return dict(
        id=model.id,
        object='model',
        created=model.created,
        owned_by='gptjax',
        max_model_len=context,
        gptjax=dict(
            step=model.step,
            template=model.template,
            context=context,
            description=model.description,
            fingerprint=model.engine.fingerprint,
        ),
    )


async def _models(request: Request) -> Response:
    models = _ready_state(request).models.values()
    return JSONResponse(dict(object='list', data=[_describe(m) for m in models]))


async def _model(request: Request) -> Response:
    models = _ready_state(request).models
    return JSONResponse(_describe(find_model(models, request.path_params['id'])))


# ---- tokens -------------------------------------------------------------------


async def _tokenize(request: Request) -> Response:
    state = _ready_state(request)
    body = validate_body(await read_body(request), schemas.TOKENIZE)
    model = find_model(state.models, body.get('model'))

    def respond() -> Response:
        tokens = api_requests.encode_prompt(body, model)
        content = dict(
            count=len(tokens), max_model_len=model.engine.context, tokens=tokens
        )
        if body.get('return_token_strs'):
            texts = [token_text(model.tokenizer, token) for token in tokens]
            content['token_strs'] = texts
        return JSONResponse(content)

    return await asyncio.to_thread(respond)


async def _detokenize(request: Request) -> Response:
    state = _ready_state(request)
    body = validate_body(await read_body(request), schemas.DETOKENIZE)
    model = find_model(state.models, body.get('model'))
    tokens = api_requests.check_token_ids(body['tokens'], model, 'tokens')
    text = await asyncio.to_thread(model.tokenizer.decode, tokens)
    return JSONResponse(dict(prompt=text))


async def _tokenizer_info(request: Request) -> Response:
    """Of the first model; ?model=ID for another."""
    state = _ready_state(request)
    model = find_model(state.models, request.query_params.get('model'))
    tokenizer = model.tokenizer
    names = {token: name for name, token in tokenizer.specials.items()}
    content = dict(
        tokenizer_class='SentencePiece',
        vocab_size=tokenizer.vocab_size,
        model_max_length=model.engine.context,
        fingerprint=tokenizer.fingerprint,
        special_tokens=tokenizer.specials,
        chat_template=JINJA_TEMPLATES.get(model.template),
    )
    for kind in ('bos', 'eos', 'pad'):
        token = getattr(tokenizer, f'{kind}_id')
        content[f'{kind}_token'] = names[token]
        content[f'{kind}_token_id'] = token
    return JSONResponse(content)


# For clients that write the prompt of a conversation themselves, as text. Special
# tokens cannot be written as text, so the template 'turns' has none.
JINJA_TEMPLATES = dict(
    text="{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
)
