"""The routes, and the application of them."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gptjax.serve import chat_replies, protocol, schemas, text_replies, tokens
from gptjax.serve.admission import Service
from gptjax.serve.api_errors import ApiError
from gptjax.serve.openapi import document
from gptjax.serve.protocol import Served, checked, find_model, parse_json
from gptjax.serve.reply_events import endpoint
from gptjax.serve.request_body import read_body
from gptjax.serve.security import Guard, content_policy

PAGE = Path(__file__).with_name('page.html')

log = logging.getLogger(__name__)


def make_app(service: Service, hosts: Iterable[str], key: str | None) -> Guard:
    """The ASGI application.

    Args:
        service: what the routes work on.
        hosts: names of this server, besides addresses and `localhost`.
        key: that every route but /health wants; None: none does.
    """
    chat = endpoint(service, 'chat', protocol.chat_call, chat_replies)
    completions = endpoint(
        service, 'completions', protocol.completion_call, text_replies
    )
    routes = [
        Route('/', _page()),
        Route('/health', _health),
        Route('/ready', _ready(service)),
        Route('/metrics', _metrics(service)),
        Route('/openapi.json', _openapi),
        Route('/v1/models', _models(service)),
        Route('/v1/models/{id:path}', _model(service)),
        Route('/v1/chat/completions', chat, methods=['POST']),
        Route('/v1/completions', completions, methods=['POST']),
        Route('/tokenize', _tokenize(service), methods=['POST']),
        Route('/detokenize', _detokenize(service), methods=['POST']),
        Route('/tokenizer_info', _tokenizer_info(service)),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _any_error,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, hosts, key)


# ---- errors -------------------------------------------------------------------


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """404 and 405, which the router raises."""
    path, method = request.url.path[:100], request.method
    told = {
        404: ApiError(404, f'{path}: no such address', 'not_found'),
        405: ApiError(405, f'{method} {path}: not this way', 'method_not_allowed'),
    }.get(error.status_code, ApiError(error.status_code, str(error.detail)))
    told.headers.update(error.headers or {})
    return told.response()


async def _any_error(request: Request, error: Exception) -> Response:
    # The error itself goes on to uvicorn, which logs it.
    log.error('%s %s: %s', request.method, request.url.path, type(error).__name__)
    return ApiError(500, 'the server made a mistake', 'internal_error').response()


# ---- what it is and how it does -----------------------------------------------


def _page():
    text = PAGE.read_text(encoding='utf-8')
    headers = {
        'Content-Security-Policy': content_policy(text),
        'Cache-Control': 'no-cache',
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return page


async def _health(request: Request) -> Response:
    return JSONResponse(dict(status='ok'))


def _ready(service: Service):
    """Whether any model can answer; ?model=ID: whether this one can."""

    async def ready(request: Request) -> Response:
        service.check_ready()
        if name := request.query_params.get('model'):
            service.check_ready(find_model(service.models, name))
            return JSONResponse(dict(status='ready'))
        content = dict(status='ready')
        if failed := service.failed():
            content['failed'] = failed
        return JSONResponse(content)

    return ready


def _metrics(service: Service):
    async def metrics(request: Request) -> Response:
        telemetry = service.telemetry
        return Response(
            telemetry.text(), headers={'Content-Type': telemetry.content_type}
        )

    return metrics


async def _openapi(request: Request) -> Response:
    return JSONResponse(document())


def _describe(model: Served) -> dict:
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


def _models(service: Service):
    async def models(request: Request) -> Response:
        service.check_ready()
        entries = [_describe(model) for model in service.models.values()]
        return JSONResponse(dict(object='list', data=entries))

    return models


def _model(service: Service):
    async def model(request: Request) -> Response:
        service.check_ready()
        name = request.path_params['id']
        return JSONResponse(_describe(find_model(service.models, name)))

    return model


# ---- tokens -------------------------------------------------------------------


def _tokenize(service: Service):
    async def tokenize(request: Request) -> Response:
        service.check_ready()
        body = checked(parse_json(await read_body(request)), schemas.TOKENIZE)
        model = find_model(service.models, body.get('model'))

        def respond() -> Response:
            found = protocol.tokens_of(body, model)
            content = dict(
                count=len(found), max_model_len=model.engine.context, tokens=found
            )
            if body.get('return_token_strs'):
                spelt = [tokens.spell(model.tokenizer, token) for token in found]
                content['token_strs'] = spelt
            return JSONResponse(content)

        return await asyncio.to_thread(respond)

    return tokenize


def _detokenize(service: Service):
    async def detokenize(request: Request) -> Response:
        service.check_ready()
        body = checked(parse_json(await read_body(request)), schemas.DETOKENIZE)
        model = find_model(service.models, body.get('model'))
        ids = protocol.known_tokens(body['tokens'], model, 'tokens')
        text = await asyncio.to_thread(model.tokenizer.decode, ids)
        return JSONResponse(dict(prompt=text))

    return detokenize


def _tokenizer_info(service: Service):
    """Of the first model; ?model=ID for another."""

    async def tokenizer_info(request: Request) -> Response:
        service.check_ready()
        model = find_model(service.models, request.query_params.get('model'))
        tokenizer = model.tokenizer
        names = {token: name for name, token in tokenizer.specials.items()}
        content = dict(
            tokenizer_class='SentencePiece',
            vocab_size=tokenizer.vocab_size,
            model_max_length=model.engine.context,
            fingerprint=tokenizer.fingerprint,
            special_tokens=tokenizer.specials,
            chat_template=JINJA.get(model.template),
        )
        for kind in ('bos', 'eos', 'pad'):
            token = getattr(tokenizer, f'{kind}_id')
            content[f'{kind}_token'] = names[token]
            content[f'{kind}_token_id'] = token
        return JSONResponse(content)

    return tokenizer_info


# For clients that write the prompt of a conversation themselves, as text. Special
# tokens cannot be written as text, so 'turns' has none.
JINJA = dict(
    text="{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
)
