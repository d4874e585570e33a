"""Errors as responses, in the shape of OpenAI's API."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from gptjax.serve.schemas import Error, ErrorFields, JsonResponse

TYPES = {401: 'authentication_error', 403: 'permission_error', 503: 'overloaded_error'}
UNSUPPORTED = 'unsupported_parameter'
MAX_WRONG_VALUES = 1000  # of a body; with more, none of them is named


class ApiError(Exception):
    """An error that becomes the response to a request.

    Args:
        code: one word for programs, as 'context_length_exceeded'.
        param: the field of the body that is wrong, as 'messages[0].role'.
        retry_after: seconds after which a client may try again.
        retry: where false, the official client does not try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retry: bool = True,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = {}
        if retry_after is not None:
            self.headers['Retry-After'] = str(retry_after)
        if not retry:
            self.headers['x-should-retry'] = 'false'

    def body(self) -> Error:
        """The JSON object, which a stream sends as an event."""
        kind = 'server_error' if self.status >= 500 else 'invalid_request_error'
        fields = ErrorFields(
            message=self.message,
            type=TYPES.get(self.status, kind),
            param=self.param,
            code=self.code,
        )
        return Error(error=fields)

    def response(self) -> JsonResponse:
        return JsonResponse(self.body(), self.status, self.headers)


def bad_request(
    param: str | None, message: str, code: str = 'invalid_value'
) -> ApiError:
    """The error of a wrong field, to be raised."""
    return ApiError(400, f'{param}: {message}' if param else message, code, param)


# ---- errors of pydantic -------------------------------------------------------


def invalid_body(error: ValidationError, content: bytes) -> ApiError:
    """The error of a body, `content`, that does not fit its model.

    Where a value may have several types, pydantic gives an error for each of them. The
    client meant the type whose error is not about the type itself, or is found
    furthest inside the value.
    """
    if error.error_count() > MAX_WRONG_VALUES:  # pydantic takes long to list them
        return bad_request(None, f'the body has {error.error_count():,} wrong values')
    errors = error.errors(include_url=False)
    if errors[0]['type'] == 'json_invalid':
        reason = errors[0]['ctx']['error']
        if 'hex escape' in reason:
            reason += ', perhaps half of a surrogate pair'
        message = f'the body is not JSON ({reason}): send a JSON object in UTF-8'
        return bad_request(None, message, 'invalid_json')
    body = from_json(content)

    def rank(wrong):
        path = _path_in_body(wrong, body)
        return not wrong['type'].endswith('_type'), len(path), path

    wrong = max(errors, key=rank)
    _, _, path = rank(wrong)
    name = ''.join(f'[{x}]' if isinstance(x, int) else f'.{x[:60]}' for x in path)[1:]
    kind = wrong['type']
    if kind == 'missing':
        return bad_request(name, 'it is missing', 'missing_parameter')
    is_unsupported = kind in ('extra_forbidden', 'none_required')
    if is_unsupported or wrong.get('ctx', {}).get('max_length') == 0:
        message = 'this server does not support it: leave it out'
        return bad_request(name, message, UNSUPPORTED)
    expected = [w['msg'] for w in errors if rank(w) == rank(wrong)]
    expected = [text.removeprefix('Input should be ') for text in expected]
    expected = ' or '.join(dict.fromkeys(expected)).replace(' after validation', '')
    if wrong['msg'].startswith('Input'):
        expected = f'it should be {expected}'
    if path[-1:] == ['type'] and 'content' in path:
        expected += ', the server reads no images or sound: leave this part out'
    if kind == 'list_type' and isinstance(wrong['input'], str):
        expected += ', not a text: send the list without quotes around it'
    value = repr(wrong['input'])
    value = value if len(value) <= 60 else f'{value[:56]} …'
    code = 'invalid_type' if kind.endswith('_type') else 'invalid_value'
    return ApiError(
        400, f'{name or "the body"}={value}: {expected}', code, name or None
    )


def _path_in_body(wrong: dict, body: Any) -> list[str | int]:
    """The keys and indices of a wrong value, without pydantic's names of types.

    ('stop', 'list[str]', 1) → ['stop', 1]
    """
    path = []
    for key in wrong['loc']:
        if isinstance(key, int):
            body = body[key]
        elif isinstance(body, dict) and (key in body or wrong['type'] == 'missing'):
            body = body.get(key)
        else:
            continue
        path.append(key)
    return path
