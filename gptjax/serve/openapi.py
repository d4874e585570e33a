"""The OpenAPI 3.1 document at /openapi.json: it publishes the enforced schemas."""

from importlib import metadata

from gptjax.serve import schemas

NUMBER = dict(type='number')
INTEGER = dict(type='integer')
STRING = dict(type='string')
MAYBE_STRING = dict(type=['string', 'null'])
IDS = dict(type='array', items=INTEGER)


def document() -> dict:
    """The whole document, as a JSON object."""
    try:
        version = metadata.version('gptjax')
    except metadata.PackageNotFoundError:
        version = '0'
    return dict(
        openapi='3.1.0',
        info=dict(
            title='gptjax',
            version=version,
            description=(
                "Replies of a trained model, in the shape of OpenAI's API. "
                '`system_fingerprint` names the weights: with it, the parameters and a '
                '`seed`, a reply can be drawn again. Fields that would change a reply '
                'and are not listed are refused by name.'
            ),
        ),
        security=[{}, dict(bearer=[]), dict(basic=[])],
        paths=_paths(),
        components=dict(
            schemas=_schemas(),
            securitySchemes=dict(
                bearer=dict(type='http', scheme='bearer'),
                basic=dict(type='http', scheme='basic'),
            ),
        ),
    )


# ---- paths --------------------------------------------------------------------


def _paths():
    model_query = dict(name='model', schema=STRING, **{'in': 'query'})
    model_path = dict(name='id', required=True, schema=STRING, **{'in': 'path'})
    text = dict(type='object', properties=dict(prompt=STRING))
    return {
        '/v1/chat/completions': _post(
            'The next message of a conversation.',
            'ChatRequest',
            _ref('ChatCompletion'),
            stream='data: a ChatChunk, … data: [DONE]',
        ),
        '/v1/completions': _post(
            'How a text goes on.',
            'CompletionRequest',
            _ref('Completion'),
            stream='data: a Completion without usage, … data: [DONE]',
        ),
        '/v1/models': _get('The models here.', _ref('ModelList'), statuses=[503]),
        '/v1/models/{id}': _get('One of them.', _ref('Model'), model_path),
        '/tokenize': _post('The tokens of a text.', 'TokenizeRequest', _ref('Tokens')),
        '/detokenize': _post('The text of tokens.', 'DetokenizeRequest', text),
        '/tokenizer_info': _get(
            'Vocabulary and special tokens of a model.',
            _ref('TokenizerInfo'),
            model_query,
        ),
        '/health': _get(
            'Whether the process lives; never needs a key.', _ref('Status')
        ),
        '/ready': _get(
            'Whether a model can answer; `failed` names those that cannot.',
            _ref('Status'),
            model_query,
        ),
        '/metrics': _get('For Prometheus.', STRING, media_type='text/plain'),
        '/openapi.json': _get('This document.', dict(type='object')),
        '/': _get('The chat page.', STRING, media_type='text/html'),
    }


ERRORS = {
    400: 'A field is wrong: `param` names it.',
    401: 'The key is missing or wrong.',
    403: 'The host is unknown, or another site asks.',
    404: 'There is no such model.',
    408: 'The body took too long.',
    413: 'The body is too long.',
    415: 'The body is no JSON.',
    500: 'A mistake of the server.',
    503: 'Loading, full or shutting down: see Retry-After.',
    504: 'The time limit of a request has passed.',
}


def _responses(description, content, statuses):
    responses = {'200': dict(description=description, content=content)}
    content = _json(_ref('Error'))
    for status in sorted({401, 403, *statuses}):
        responses[str(status)] = dict(description=ERRORS[status], content=content)
    return responses


def _get(summary, schema, model=None, statuses=(), media_type='application/json'):
    """A route; with the parameter `model` it also answers 404 and 503."""
    content = {media_type: dict(schema=schema)}
    responses = _responses(summary, content, (404, 503) if model else statuses)
    get = dict(summary=summary, responses=responses)
    return dict(get=dict(get, parameters=[model]) if model else get)


def _post(summary, request, schema, stream=None):
    content, statuses = _json(schema), [400, 404, 408, 413, 415, 500, 503]
    if stream:
        content['text/event-stream'] = dict(schema=dict(STRING, description=stream))
        statuses.append(504)
    post = dict(
        summary=summary,
        requestBody=dict(required=True, content=_json(_ref(request))),
        responses=_responses(summary, content, statuses),
    )
    return dict(post=post)


def _json(schema):
    return {'application/json': dict(schema=schema)}


def _ref(name):
    return {'$ref': f'#/components/schemas/{name}'}


# ---- schemas ------------------------------------------------------------------


def _object(**properties):
    return dict(type='object', required=list(properties), properties=properties)


def _maybe(schema):
    return dict(anyOf=[schema, dict(type='null')])


def _array(schema):
    return dict(type='array', items=schema)


def _schemas():
    finish = dict(enum=['stop', 'length', None])
    token = dict(token=STRING, logprob=NUMBER, bytes=_maybe(IDS))
    chat_token = _object(**token, top_logprobs=_array(_object(**token)))
    chat_logprobs = _maybe(_object(content=_array(chat_token)))
    text_logprobs = _maybe(
        _object(
            tokens=_array(STRING),
            token_logprobs=_array(_maybe(NUMBER)),
            top_logprobs=_array(_maybe(dict(type='object'))),
            text_offset=IDS,
        )
    )
    usage = _object(
        prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER
    )
    envelope = dict(id=STRING, object=STRING, created=INTEGER, model=STRING)
    envelope['system_fingerprint'] = STRING

    def choices(**properties):
        return _array(_object(index=INTEGER, finish_reason=finish, **properties))

    message = _object(role=dict(enum=['assistant']), content=STRING)
    whole_choices = choices(message=message, logprobs=chat_logprobs)
    chunk_choices = choices(delta=dict(type='object'), logprobs=chat_logprobs)
    text_choices = choices(text=STRING, logprobs=text_logprobs)
    error = _object(message=STRING, type=STRING, param=MAYBE_STRING, code=MAYBE_STRING)
    facts = _object(step=INTEGER, template=STRING, context=INTEGER, description=STRING)
    model = _object(
        id=STRING,
        object=dict(enum=['model']),
        created=INTEGER,
        owned_by=STRING,
        max_model_len=INTEGER,
        gptjax=facts,
    )
    return dict(
        ChatRequest=schemas.CHAT,
        CompletionRequest=schemas.COMPLETION,
        TokenizeRequest=schemas.TOKENIZE,
        DetokenizeRequest=schemas.DETOKENIZE,
        ChatCompletion=_object(**envelope, choices=whole_choices, usage=usage),
        ChatChunk=_object(**envelope, choices=chunk_choices),
        Completion=_object(**envelope, choices=text_choices),
        Tokens=_object(count=INTEGER, max_model_len=INTEGER, tokens=IDS),
        TokenizerInfo=_object(
            vocab_size=INTEGER,
            bos_token=STRING,
            bos_token_id=INTEGER,
            eos_token=STRING,
            eos_token_id=INTEGER,
            chat_template=MAYBE_STRING,
        ),
        Model=model,
        ModelList=_object(object=dict(enum=['list']), data=_array(model)),
        Status=_object(status=STRING),
        Error=_object(error=error),
    )
