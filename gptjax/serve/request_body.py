"""Reading the body of a request, of which nobody knows how long it will be."""

import asyncio

from starlette.requests import Request

from gptjax.serve.api_errors import ApiError
from gptjax.serve.schemas import BODY_BYTES

READ_SECONDS = 30.0
# A client that still sends does not read an answer: what is too long is read on and
# dropped for a while, so that it learns why.
DROPPED_BYTES = 64 * 2**20
DROPPED_SECONDS = 5.0


async def read_body(request: Request) -> bytes:
    """The body, of `BODY_BYTES` at most, whatever its headers claim.

    Raises:
        ApiError: 413 too long, 415 no JSON, 408 too slow, 400 it broke off.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise ApiError(
            415,
            f'Content-Type is {kind[:60]!r}: send application/json',
            'unsupported_media_type',
        )
    content = bytearray()
    length = 0
    try:
        async with asyncio.timeout(READ_SECONDS) as limit:
            more = True
            while more and length <= DROPPED_BYTES:
                message = await request.receive()
                if message['type'] == 'http.disconnect':
                    raise ApiError(400, 'the body broke off', 'incomplete_body')
                more = message.get('more_body', False)
                length += len(message.get('body', b''))
                if length <= BODY_BYTES:
                    content += message.get('body', b'')
                elif content:
                    content.clear()
                    now = asyncio.get_running_loop().time()
                    limit.reschedule(now + DROPPED_SECONDS)
    except TimeoutError:
        if length <= BODY_BYTES:
            raise ApiError(
                408, f'the body took over {READ_SECONDS:.0f} s', 'timeout', retry=False
            ) from None
    if length > BODY_BYTES:
        raise ApiError(
            413,
            f'the body is longer than {BODY_BYTES:,} bytes: send less',
            'body_too_large',
        )
    return bytes(content)
