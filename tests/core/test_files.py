"""Users' files are read, or an error names the file and the line."""

import gzip
import os

import pytest

from gptjax.core import files
from gptjax.core.console import UserError


def read(path):
    return list(files.read_json_lines(files.File(str(path), path.name), 'a.field'))


@pytest.mark.parametrize('pack', (bytes, gzip.compress))
def test_json_lines(pack, tmp_path):
    path = tmp_path / ('a.jsonl' if pack is bytes else 'a.jsonl.gz')
    text = '\ufeff{"a": "naïve \u2028"}\n \n\n{"a": [1]}'  # a byte-order mark
    path.write_bytes(pack(text.encode()))
    (one, _, first), (four, where, last) = read(path)
    assert (one, first, four, last) == (1, {'a': 'naïve \u2028'}, 4, {'a': [1]})
    assert where == f'a.field={path}: line 4'


@pytest.mark.parametrize(
    'line, text',
    (
        (b'{', 'is not valid JSON (Expecting property name'),
        (b'[1]', 'is not a JSON object but a list'),
        (b'[' * 100_000, 'is nested too deeply'),
        (b'{"a": 1' + b'0' * 5000 + b'}', 'a number has thousands of digits'),
        (b'{"a": "\0"}', 'has a NUL byte'),
        (b'{"a": "\xff"}', 'is not UTF-8 (byte 0xff at 7)'),
    ),
)
def test_a_line_that_cannot_be_used_is_named(line, text, tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'{"a": 1}\n' + line + b'\n')
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f'a.field={path}: line 2 ') and text in message
    assert '\n' not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match='a.field=.*none.jsonl: No such file'):
        read(tmp_path / 'none.jsonl')
    path = tmp_path / 'a.jsonl.gz'
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 9999)[:-20])
    with pytest.raises(UserError, match=r'damaged after line \d+ .*gunzip'):
        read(path)


def test_tensorflow_sees_no_accelerator():
    tf = files.import_tensorflow()
    assert {device.device_type for device in tf.config.get_visible_devices()} == {'CPU'}


def test_only_what_is_printed_meanwhile_is_dropped(capfd):
    os.write(2, b'before ')
    with pytest.raises(ValueError), files._no_standard_error():
        os.write(2, b'meanwhile ')
        raise ValueError
    os.write(2, b'after')
    assert capfd.readouterr().err == 'before after'
