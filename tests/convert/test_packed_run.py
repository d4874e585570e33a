"""A run goes into one file and comes back equal; any other file is refused."""

import gzip
import hashlib
import io
import json
import os
import re
import tarfile

import pytest
from ml_collections import ConfigDict

from gptjax.convert import packed_run
from gptjax.convert.packed_run import pack_run, unpack_run
from gptjax.core import run_dir, schema, storage
from gptjax.core.console import UserError
from tests import runs

LONG = 'folder/' * 20 + 'naïve 名.txt'  # longer than a tar's plain header holds


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / 'run'
    contents = {'config.json': b'{}', LONG: bytes(range(256)) * 5, 'empty': b''}
    contents |= {'checkpoints/00000001/state': os.urandom(700)}
    for name, content in contents.items():
        storage.write_bytes(folder / name, content)
    for name in ('datasets/copy', '.lock', 'checkpoints/2.orbax-checkpoint-tmp-1/x'):
        storage.write_bytes(folder / name, b'left out')
    return folder


@pytest.fixture
def packed(run, tmp_path):
    pack_run(ConfigDict(), run, tmp_path / 'run.tar.gz')
    return tmp_path / 'run.tar.gz'


def contents(folder):
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(path, match):
    """The file is refused, and nothing is left of it."""
    before = sorted(path.parent.rglob('*'))
    with pytest.raises(UserError, match=match) as info:
        unpack_run(path, path.parent / 'new')
    assert '\n' not in str(info.value) and str(path) in str(info.value)
    assert sorted(path.parent.rglob('*')) == before


def test_there_and_back(run, packed, tmp_path, capsys):
    unpack_run(packed, tmp_path / 'new')
    kept = contents(run)
    for name in ('datasets/copy', '.lock', 'checkpoints/2.orbax-checkpoint-tmp-1/x'):
        kept.pop(name, None)
    assert contents(tmp_path / 'new') == kept and LONG in kept
    # Other times and another place give the same bytes, and other tools read them.
    os.utime(run / 'config.json', (0, 0))
    moved = run.rename(tmp_path / 'elsewhere').rename(run)
    pack_run(ConfigDict(), moved, tmp_path / 'b')
    assert (tmp_path / 'b').read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        assert tar.getnames() == ['manifest.json', *(f'run/{n}' for n in sorted(kept))]
        assert tar.extractfile(f'run/{LONG}').read() == kept[LONG]
    assert storage.sha256_of_file(packed) in capsys.readouterr().out


def test_every_changed_byte_and_every_cut_is_found(packed, tmp_path):
    content = packed.read_bytes()
    changed = tmp_path / 'changed'
    places = {*range(12), *range(12, len(content), len(content) // 40)}
    for place in sorted(places | {len(content) - n for n in range(1, 9)}):
        flipped = bytes([content[place] ^ 1])
        changed.write_bytes(content[:place] + flipped + content[place + 1 :])
        refused(changed, 'copy it again')
    for end in (0, 5, len(content) // 2, len(content) - 9, len(content) - 1):
        changed.write_bytes(content[:end])
        refused(changed, 'copy it again')
    for more in (b'\0' * 8, gzip.compress(b''), b'more'):
        changed.write_bytes(content + more)
        refused(changed, 'copy it again')


def write_tar(path, files, members=None, more=b'', **fields):
    """A packed file with this manifest and these members, `TarInfo` and content."""
    manifest = json.dumps(dict(format=1, files=files, **fields)).encode()
    with gzip.open(path, 'wb') as stream:
        packed_run._write_member(
            stream, 'manifest.json', io.BytesIO(manifest), len(manifest)
        )
        for info, content in members or ():
            info.size = len(content)
            stream.write(info.tobuf(tarfile.PAX_FORMAT) + content)
            stream.write(bytes(-len(content) % 512))
        stream.write(more + bytes(1024))
    return seal(path)


def seal(path):
    sealed = path.read_bytes() + packed_run._seal(storage.sha256_of_file(path))
    path.write_bytes(sealed)
    return path


def entry(content):
    return dict(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    'name',
    [
        *('../out', '/etc/out', 'a/../../out', './out', 'a//b', 'a\n', '', 'a/'),
        *('é' * 128, 'a/' * 512 + 'a'),
    ],
)
def test_no_path_leaves_the_folder(name, tmp_path):
    files = {'config.json': entry(b'{}'), name: entry(b'')}
    refused(write_tar(tmp_path / 'bad', files), 'no path in a run')


@pytest.mark.parametrize(
    'kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_only_plain_files_are_unpacked(kind, tmp_path):
    info = tarfile.TarInfo('run/config.json')
    info.type, info.linkname = kind, '/etc/passwd'
    path = write_tar(tmp_path / 'bad', {'config.json': entry(b'')}, [(info, b'')])
    refused(path, 'no plain file')


def test_the_manifest_says_all(tmp_path):
    def member(content, name='run/config.json'):
        return tarfile.TarInfo(name), content

    files, path = {'config.json': entry(b'{}')}, tmp_path / 'bad'
    refused(write_tar(path, files, [member(b'{} ')]), 'no plain file')
    refused(write_tar(path, files, [member(b'[]')]), 'has changed')
    more = [member(b'{}'), member(b'more', 'run/more')]
    refused(write_tar(path, files, more), 'more bytes')
    refused(write_tar(path, files, more[:1], bytes(10_000)), 'more bytes')
    refused(write_tar(path, {'a': entry(b'')}), 'no run')
    refused(write_tar(path, files | {'config.json/a': entry(b'')}), 'needs a folder')
    for wrong in (5, ['a'], {'a': 5}, {'a\n': 'b'}):
        refused(write_tar(path, files, more[:1], outside=wrong), '"outside" names no')
    for wrong in ({}, dict(entry(b''), bytes=-1), dict(entry(b''), bytes=1.0)):
        refused(write_tar(path, files | dict(a=wrong)), 'lacks the size')
    large = dict(entry(b''), bytes=2**60)
    refused(write_tar(path, files | dict(a=large)), 'more than .* has free')
    path.write_bytes(gzip.compress(b'text' * 300))
    refused(seal(path), 'not a packed run')
    path.write_bytes(gzip.compress(b'text' * 300)[:-9])
    refused(seal(path), 'copy it again')


def test_the_place_is_new(packed, tmp_path):
    (tmp_path / 'new').mkdir()
    unpack_run(packed, tmp_path / 'new')
    before = contents(tmp_path / 'new')
    with pytest.raises(UserError, match='--workdir=.*something already'):
        unpack_run(packed, tmp_path / 'new')
    assert contents(tmp_path / 'new') == before
    with pytest.raises(UserError, match='No such file'):
        unpack_run(tmp_path / 'none', tmp_path / 'other')


def test_what_is_not_packed(run, tmp_path):
    def refuses(match, **config):
        with pytest.raises(UserError, match=match):
            pack_run(ConfigDict(config), run, tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

    refuses(
        'LoRA weights for start.run=base', start=dict(run='base'), lora=dict(rank=4)
    )
    with run_dir.locked(run):
        refuses('another process is writing')
    (run / '.documents.unfinished').touch()
    refuses('documents is not complete')
    (run / '.documents.unfinished').unlink()
    (run / 'link').symlink_to('/etc/passwd')
    refuses('is a link')


def test_paths_outside_the_run_are_printed(run, tmp_path, capsys):
    config = dict(
        start=dict(run='runs/base'),
        policy=dict(prompts=8),
        ppo=dict(ptx_run='runs/\x1b[2Jtext', critic_run=''),
        task=dict(path='', rewards=dict(liked=dict(run='runs/judge', on='all'))),
        data=dict(
            evaluation_sets=('a.txt', 'b.txt'),
            sources=dict(
                own=dict(kind='text', path='own/*.txt'),
                chitchat=dict(kind='tfds', path='chitchat'),
            ),
        ),
    )
    pack_run(ConfigDict(config), run, tmp_path / 'out')
    printed = capsys.readouterr().out
    unpack_run(tmp_path / 'out', tmp_path / 'new')
    for output in (printed, capsys.readouterr().out):
        lines = [line for line in output.split('\n') if line.startswith('not in')]
        assert sorted(line.removeprefix('not in the file: ') for line in lines) == [
            "data.evaluation_sets='a.txt, b.txt'",
            "data.sources.own.path='own/*.txt'",
            r"ppo.ptx_run='runs/\x1b[2Jtext'",
            "start.run='runs/base'",
            "task.rewards.liked.run='runs/judge'",
        ]


def test_every_field_of_a_path_is_known():
    """The schema says of a field that it names a run, a file or a folder."""
    words = r'\b(run directory|run of|reward model|files?|folder|table)\b'

    def paths(fields):
        for name, field in fields.items():
            nested = field if isinstance(field, dict) else field.range
            if isinstance(nested, dict):
                yield from paths(nested)
            elif field.default in ('', ()) and re.search(words, field.doc):
                yield name

    assert {*paths(schema.SCHEMA)} == {*packed_run.PATH_FIELDS}


def test_the_command_line(run, tmp_path, capsys):
    assert runs.gptjax('pack', run, '--to', tmp_path / 'out') == 0
    assert runs.gptjax('unpack', tmp_path / 'out', '--workdir', tmp_path / 'new') == 0
    assert runs.gptjax('unpack', tmp_path / 'out', '--workdir', tmp_path / 'new') == 2
    assert runs.gptjax('pack', run) == runs.gptjax('unpack', tmp_path / 'out') == 2
    assert runs.gptjax('pack', tmp_path / 'none', '--to', tmp_path / 'b') == 2
    errors = capsys.readouterr().err.strip().split('\n')
    assert len(errors) == 4 and 'is not a run directory' in errors[-1]
