"""Errors as answers, in the shape of OpenAI's API."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An error that becomes the answer to a request.

    `code` is one word for programs, as 'context_length_exceeded'; `param` the field of
    the body that is wrong, as 'messages[0].role'. A client may try again after
    `retry_after` seconds; the official client does not where `retry` is false.
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

    def body(self) -> dict:
        """Its JSON object, also sent as an event of a stream."""
        kind = 'server_error' if self.status >= 500 else 'invalid_request_error'
        error = dict(
            message=self.message,
            type=TYPES.get(self.status, kind),
            param=self.param,
            code=self.code,
        )
        return dict(error=error)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


TYPES = {401: 'authentication_error', 403: 'permission_error', 503: 'overloaded_error'}


def bad_request(param: str | None, message: str, code: str = 'invalid_value'):
    """The error of a wrong field, to be raised."""
    return ApiError(400, f'{param}: {message}' if param else message, code, param)
