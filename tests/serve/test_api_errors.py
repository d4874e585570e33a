"""Bad input gets the right error, in the form of OpenAI's; the server stays up."""

import http.client
import json
import socket

import openai
import pytest

from tests import servers

CHAT, COMPLETION = '/v1/chat/completions', '/v1/completions'
HELLO = [dict(role='user', content='Hello')]
LONG = 'The red fox says. ' * 400
JSON_SCHEMA = 'response_format.json_schema'
STRANGE = dict(schema=dict(type='strange'), name='x')
STRANGE = dict(type='json_schema', json_schema=STRANGE)
IMAGE = [dict(type='image_url', image_url={})]


def chat(role, content='Hello', **more):
    return [dict(role=role, content=content, **more)]


# (fields, status, param, part of the message)
BAD_CHATS = [
    (dict(model='huge'), 404, 'model', 'use one of tiny'),
    (dict(model=''), 404, 'model', 'use one of tiny'),
    (dict(model=3), 400, 'model', 'a valid string'),
    (dict(messages=[]), 400, 'messages', 'at least 1 item'),
    (dict(messages=None), 400, 'messages', 'a valid array'),
    (dict(messages=HELLO * 1025), 400, 'messages', 'at most 1024'),
    (
        dict(messages=chat('robot')),
        400,
        'messages[0].role',
        "'robot': it should be 'sy",
    ),
    (dict(messages=chat('tool')), 400, 'messages[0].role', "'system'"),
    (dict(messages=[*HELLO, None]), 400, 'messages[1]', 'an object'),
    (dict(messages=chat('user', None)), 400, 'messages[0].content', 'string or a'),
    (dict(messages=chat('user', IMAGE)), 400, 'messages[0].content[0].type', 'images'),
    (dict(messages='[]'), 400, 'messages', 'without quotes'),
    (dict(messages=chat('user', name='ann')), 400, 'messages[0].name', 'leave it'),
    (dict(messages=chat('user', LONG)), 400, 'messages', 'shorten it to 511'),
    (dict(temperature='hot'), 400, 'temperature', 'a valid number'),
    (dict(max_tokens=True), 400, 'max_tokens', 'a valid integer'),
    (dict(max_tokens=1.5), 400, 'max_tokens', 'a valid integer'),
    (dict(max_tokens=0), 400, 'max_tokens', 'equal to 1'),
    (dict(max_tokens=2, max_completion_tokens=3), 400, 'max_tokens', 'differs'),
    (dict(n=1000), 400, 'n', 'equal to 16'),
    (dict(temperature=-1), 400, 'temperature', 'equal to 0'),
    (dict(top_p=0), 400, 'top_p', 'greater than 0'),
    (dict(top_k=-1), 400, 'top_k', 'equal to 0'),
    (dict(seed=2**32), 400, 'seed', 'equal to 4294967295'),
    (dict(stop=''), 400, 'stop', 'at least 1'),
    (dict(stop=['a'] * 17), 400, 'stop', 'at most 16'),
    (dict(stop=['a', None]), 400, 'stop[1]', 'a valid string'),
    (dict(logit_bias={'x': 1}), 400, 'logit_bias.x', '[0-9]'),
    (dict(logit_bias={'400': 1}), 400, 'logit_bias', 'to 399'),
    (dict(logit_bias={'4': 1e9}), 400, 'logit_bias.4', 'equal to 1000'),
    (dict(top_logprobs=2), 400, 'top_logprobs', 'logprobs=true'),
    (dict(logprobs=True, top_logprobs=21), 400, 'top_logprobs', 'equal to 20'),
    (dict(stream_options=dict(include_usage=True)), 400, 'stream_options', 'stream=tr'),
    (dict(continue_final_message=True), 400, 'continue_final_message', 'assistant'),
    (dict(tools=[dict(type='function')]), 400, 'tools', 'leave it out'),
    (dict(temprature=1), 400, 'temprature', 'leave it out'),
    (dict(reasoning_effort='low'), 400, 'reasoning_effort', 'not support'),
    (dict(response_format=dict(type='xml')), 400, 'response_format.type', 'json_sche'),
    (dict(response_format=dict(type='json_schema')), 400, JSON_SCHEMA, 'missing'),
    (dict(response_format=STRANGE), 400, f'{JSON_SCHEMA}.schema', 'Invalid type: stra'),
]
BAD_COMPLETIONS = [
    (dict(prompt=None), 400, 'prompt', 'string or a valid array'),
    (dict(prompt=[]), 400, 'prompt', 'at least 1'),
    (dict(prompt=['a', 1]), 400, 'prompt[1]', 'a valid string'),
    (dict(prompt=[1, 400]), 400, 'prompt', '0 to 399'),
    (dict(prompt=['a'] * 65), 400, 'prompt', 'at most 64'),
    (dict(prompt=LONG), 400, 'prompt', 'shorten it to 511'),
    (dict(suffix='.'), 400, 'suffix', 'not support'),
    (dict(best_of=2), 400, 'best_of', 'not supported'),
    (dict(max_tokens=0), 400, 'max_tokens', 'echo'),
    (dict(logprobs=21), 400, 'logprobs', 'equal to 20'),
    (dict(prompt=['a'] * 7), 400, 'prompt', '6 replies at most'),
]


def error_of(answer, status):
    """The error of an answer, after checks of its form, status and headers."""
    answer_status, body, headers = answer
    assert answer_status == status, (answer_status, body)
    assert body.keys() == {'error'}
    assert body['error'].keys() == {'message', 'type', 'param', 'code'}
    assert isinstance(body['error']['message'], str) and body['error']['type']
    assert 'access-control-allow-origin' not in map(str.lower, headers)
    return body['error']


@pytest.mark.parametrize('path', [CHAT, COMPLETION])
def test_wrong_fields_are_refused_by_name(server, path):
    valid = dict(messages=HELLO) if path == CHAT else dict(prompt='Hello')
    for fields, status, param, reason in BAD_CHATS if path == CHAT else BAD_COMPLETIONS:
        content = json.dumps({**valid, **fields}).encode()
        error = error_of(servers.send(server, path, content), status)
        assert error['param'] == param and reason in error['message'], error
        assert len(error['message']) < 500


BAD_BODIES = [
    (b'', 400, 'not JSON'),
    (b'{"messages": ', 400, 'not JSON'),
    (b'[]', 400, 'object'),
    (b'null', 400, 'object'),
    (b'{"prompt": "\xff\xfe"}', 400, 'UTF-8'),
    (b'{"prompt": "\\ud800"}', 400, 'surrogate pair'),
    (b'{"prompt": "a", "temperature": NaN}', 400, 'temperature'),
    (b'{"prompt": "a", "temperature": 1e999}', 400, 'temperature'),
    (b'{"prompt": "a", "temperature": ' + b'9' * 400 + b'}', 400, 'temperature'),
    (b'{"prompt": "a", "seed": ' + b'9' * 9999 + b'}', 400, 'JSON'),
    (b'[' * 200_000, 400, 'JSON'),
    (b'{"prompt": "' + b'a' * 10_000_000 + b'"}', 413, '1,048,576'),
]


def test_bad_bodies_are_refused(server):
    for content, status, reason in BAD_BODIES:
        for path in (COMPLETION, '/tokenize'):
            error = error_of(servers.send(server, path, content), status)
            assert reason in error['message'], error
    assert server.get('/ready') == dict(status='ready')


def test_a_body_too_long_without_content_length(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=30)
    pieces = (b'x' * 65536 for _ in range(40))
    headers = {'Content-Type': 'application/json'}
    connection.request('POST', CHAT, pieces, headers, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())['error']['code'] == 'body_too_large'
    connection.close()


def test_a_body_that_breaks_off(server):
    connection = servers.connect(server)
    whole = servers.post_bytes(CHAT, b'{"messages": []}')
    connection.sendall(whole[:-4])
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1000)  # closed or an error: the server does not wait
    connection.close()
    assert server.get('/ready') == dict(status='ready')


def test_no_such_address_or_method(server):
    for path in ('/nothing', '/v1', '/v1/chat/completions/', '/../etc/passwd'):
        assert error_of(servers.send(server, path, b'{}'), 404)['code'] == 'not_found'
    missing = servers.send(server, '/v1/models/huge', None, 'GET')
    assert error_of(missing, 404)['code'] == 'model_not_found'
    for path, method in ((CHAT, 'GET'), ('/v1/models', 'DELETE'), (CHAT, 'OPTIONS')):
        answer = servers.send(server, path, None, method)
        assert error_of(answer, 405)['code'] == 'method_not_allowed'
        assert answer[2]['allow']


def test_other_content_is_not_read(server):
    kind = {'Content-Type': 'text/plain'}
    error = error_of(servers.send(server, CHAT, b'{}', **kind), 415)
    assert 'send application/json' in error['message']


def test_pages_of_other_sites_are_refused(server):
    body = json.dumps(dict(messages=HELLO, max_tokens=1)).encode()
    for headers in (
        {'Host': 'evil.example'},
        {'Origin': 'http://evil.example'},
        {'Origin': 'null'},
        {'Origin': 'http://localhost:1'},
    ):
        error_of(servers.send(server, CHAT, body, **headers), 403)
        error_of(servers.send(server, '/health', None, 'GET', **headers), 403)
    here = f'localhost:{server.port}'
    for headers in ({'Host': here}, {'Host': here, 'Origin': f'http://{here}'}):
        assert servers.send(server, CHAT, body, **headers)[0] == 200


def test_no_http_at_all(server):
    connection = servers.connect(server)
    connection.sendall(b'\x16\x03\x01 what is this\r\n\r\n')
    assert connection.recv(1000).startswith(b'HTTP/1.1 400')
    connection.close()
    assert server.get('/ready') == dict(status='ready')


def test_bad_tokens(server):
    for path, body, param in (
        ('/tokenize', {}, 'prompt'),
        ('/tokenize', dict(prompt='a', messages=HELLO), 'prompt'),
        ('/detokenize', {}, 'tokens'),
        ('/detokenize', dict(tokens=[400]), 'tokens'),
        ('/detokenize', dict(tokens=[-1]), 'tokens[0]'),
    ):
        error = error_of(servers.send(server, path, json.dumps(body).encode()), 400)
        assert error['param'] == param, error


def test_the_official_client_knows_the_errors(server):
    client = openai.OpenAI(base_url=f'{server.address}/v1', api_key='x', max_retries=0)
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model='huge', messages=HELLO)
    assert missing.value.code == 'model_not_found'
    with pytest.raises(openai.BadRequestError) as long:
        ask(model='tiny', messages=chat('user', LONG), stream=True)
    assert long.value.code == 'context_length_exceeded'
    assert long.value.param == 'messages' and long.value.request_id.startswith('req_')
    client.close()
