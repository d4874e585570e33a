"""The OpenAPI 3.1 document at /openapi.json: the routes and the models of `schemas`."""

import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gptjax.serve.schemas import Error

TEXT = dict(type='string')
ERRORS = {
    400: 'A field is wrong: `param` names it.',
    401: 'The key is missing or wrong.',
    403: 'The host is unknown, or a page of another site sends the request.',
    404: 'There is no such model.',
    408: 'The body took too long.',
    413: 'The body is too long.',
    415: 'The Content-Type is not application/json.',
    500: 'An internal error of the server.',
    503: 'Loading, full or shutting down: see Retry-After.',
    504: 'The time limit of a request has passed.',
}
GET_ERRORS = (401, 403, 404, 503)


class Operation(NamedTuple):
    """One route of the API: a POST where there is a `request`, else a GET."""

    path: str
    handler: Callable  # the first line of its docstring is published
    response: type[BaseModel] | str  # a model, or the media type of other content
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None  # an event, where the response can stream
    query: str | None = None  # name of a parameter


def document(operations: Sequence[Operation]) -> dict:
    """The whole document, as a JSON object."""
    try:
        version = metadata.version('gptjax')
    except metadata.PackageNotFoundError:
        version = '0'
    models = {Error}
    for operation in operations:
        models |= {operation.response, operation.request, operation.chunk}
    models = [(model, 'validation') for model in models if isinstance(model, type)]
    _, definitions = models_json_schema(
        models, ref_template='#/components/schemas/{model}'
    )
    return dict(
        openapi='3.1.0',
        info=dict(
            title='gptjax',
            version=version,
            description=(
                "Replies of a trained model, in the shape of OpenAI's API. "
                '`system_fingerprint` identifies the weights: the same weights, '
                'parameters and `seed` give the same reply again. Unknown fields are '
                'refused by name.'
            ),
        ),
        security=[{}, dict(bearer=[]), dict(basic=[])],
        paths={op.path.replace(':path', ''): _path_item(op) for op in operations},
        components=dict(
            schemas=definitions['$defs'],
            securitySchemes=dict(
                bearer=dict(type='http', scheme='bearer'),
                basic=dict(type='http', scheme='basic'),
            ),
        ),
    )


def _path_item(operation: Operation) -> dict:
    summary = operation.handler.__doc__.splitlines()[0]
    content = _content(operation.response)
    if operation.chunk:
        events = f'data: a {operation.chunk.__name__}, … data: [DONE]'
        content['text/event-stream'] = dict(schema=dict(description=events))
    responses = {'200': dict(description=summary, content=content)}
    for status in ERRORS if operation.request else GET_ERRORS:
        error = dict(description=ERRORS[status], content=_content(Error))
        responses[str(status)] = error
    item = dict(summary=summary, responses=responses)
    parameters = [(name, 'path') for name in re.findall(r'{(\w+)', operation.path)]
    if operation.query:
        parameters.append((operation.query, 'query'))
    item['parameters'] = [
        {'name': name, 'in': place, 'schema': TEXT, 'required': place == 'path'}
        for name, place in parameters
    ]
    if operation.request is None:
        return dict(get=item)
    body = dict(required=True, content=_content(operation.request))
    return dict(post=dict(item, requestBody=body))


def _content(model: type[BaseModel] | str) -> dict:
    if isinstance(model, str):
        return {model: dict(schema={} if 'json' in model else TEXT)}
    schema = {'$ref': f'#/components/schemas/{model.__name__}'}
    return {'application/json': dict(schema=schema)}
