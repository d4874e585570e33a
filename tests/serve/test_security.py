"""Hosts, origins, keys and the page's policy, without a server."""

import asyncio
import base64
import hashlib

import pytest

from gptjax.core.console import UserError
from gptjax.serve import api, security
from gptjax.serve.security import Guard, content_policy, host_name


async def inner(scope, receive, send):
    await send(dict(type='http.response.start', status=200, headers=[]))
    await send(dict(type='http.response.body', body=b''))


def status_of(guard, path='/', **headers):
    """(status, headers) of a GET."""
    sent = []

    async def send(message):
        sent.append(message)

    pairs = [(k.replace('_', '-').encode(), v.encode()) for k, v in headers.items()]
    scope = dict(type='http', method='GET', path=path, headers=pairs)
    asyncio.run(guard(scope, None, send))
    return sent[0]['status'], dict(sent[0]['headers'])


def test_hosts():
    guard = Guard(inner, ['Chat.example'], None)
    for host, status in {
        'localhost': 200,
        'LOCALHOST:80': 200,
        'localhost.:80': 200,
        '127.0.0.1:8000': 200,
        '[::1]:8000': 200,
        'chat.example': 200,
        'chat.example.evil': 403,
        '127.0.0.1.evil': 403,
        'evil@localhost': 403,
        '[::1': 200,
        '': 403,
    }.items():
        assert status_of(guard, host=host)[0] == status, host
    assert status_of(guard)[0] == 403


def test_host_names():
    assert host_name('A.b:1') == 'a.b'
    assert host_name('[::1]:1') == '::1'
    assert host_name('::1') == ''


def test_keys():
    guard = Guard(inner, [], 'the key')

    def ask(given, path='/'):
        return status_of(guard, path, host='localhost', authorization=given)[0]

    basic = base64.b64encode(b'me:the key').decode()
    assert ask('Bearer the key') == ask(f'Basic {basic}') == 200
    wrong = ('', 'Bearer', 'Bearer the', 'Bearer the key2', 'the key')
    for given in (*wrong, 'Basic !', 'Basic é', f'Basic {basic}é'):
        assert ask(given) == 401, given
    assert ask('', '/health') == 200
    for path in ('/health/', '/healthy', '//health', '/HEALTH'):
        assert ask('', path) == 401


def test_answers_keep_browsers_from_more():
    _, headers = status_of(Guard(inner, [], None), host='localhost')
    assert headers[b'content-security-policy'].startswith(b"default-src 'none'")
    assert headers[b'x-content-type-options'] == b'nosniff'
    assert headers[b'cache-control'] == b'no-store'
    assert not [name for name in headers if b'access-control' in name]


def test_reading_keys(tmp_path):
    path = tmp_path / 'key'
    path.write_text('  a-good-key\n')
    assert security.read_key(str(path)) == 'a-good-key'
    for bad in ('', 'short', 'two words here', 'two-lines\nare-none', 'schlüssel-lang'):
        path.write_text(bad)
        with pytest.raises(UserError, match='--api_key_file=.*use one line'):
            security.read_key(str(path))
    path.write_bytes(b'\xff' * 10)
    with pytest.raises(UserError, match='it is no text'):
        security.read_key(str(path))


def test_only_this_machine_without_a_key():
    for host in ('127.0.0.1', 'localhost', '::1', '127.8.8.8'):
        security.check_host(host, None)
    for host in ('0.0.0.0', '::', '192.0.2.1'):
        with pytest.raises(UserError, match='give an --api_key_file'):
            security.check_host(host, None)
        security.check_host(host, 'key')


def test_the_policy_lets_the_own_script_and_style_run():
    page = '<style>p {}</style><script>let x = "ä";\n</script>'
    policy = content_policy(page)
    for content in ('p {}', 'let x = "ä";\n'):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert 'unsafe' not in policy and "default-src 'none'" in policy
    for wrong in (
        page + '<script>2</script>',
        '<style></style>',
        page + '<script src>',
    ):
        with pytest.raises(ValueError, match='exactly one'):
            content_policy(wrong)


def test_the_page_has_one_script_and_one_style():
    assert 'sha256-' in content_policy(api.PAGE.read_text(encoding='utf-8'))
