"""A folder that cannot be imported gives one clear error, and nothing is made."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptjax.convert import export_model
from tests import runs
from tests.convert import made_models


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')
    made_models.write_folder(folder)
    return folder


def change_config(**fields):
    def change(folder):
        path = folder / 'config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def change_tensors(change):
    def rewrite(folder):
        path = folder / 'model.safetensors'
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


def truncate(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1000])


def lose_a_shard(folder):
    names = {name: 'model-00002-of-00002.safetensors' for name in ('a', 'b')}
    text = json.dumps(dict(weight_map=names))
    (folder / 'model.safetensors.index.json').write_text(text)
    (folder / 'training_args.bin').write_text('')
    (folder / 'pytorch_model.bin').write_text('')


def lose_all_weights(folder):
    (folder / 'model.safetensors').unlink()
    (folder / 'training_args.bin').write_text('')


def name_a_file_elsewhere(folder):
    text = json.dumps(dict(weight_map=dict(a='../secret.safetensors')))
    (folder / 'model.safetensors.index.json').write_text(text)


def pickle(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def take_the_tokenizer_of_another_model(folder):
    path = folder / 'tokenizer.json'
    described = json.loads(path.read_text())
    vocabulary = described['model']['vocab']
    vocabulary |= {f'more{i}': len(vocabulary) + i for i in range(500)}
    path.write_text(json.dumps(described))


NORM = 'model.norm.weight'
BAD = {
    'truncated': (truncate, 'model.safetensors is damaged or cut off'),
    'shard': (lose_a_shard, 'lacks model-00002-of-00002.safetensors: copy'),
    'elsewhere': (name_a_file_elsewhere, 'does not name files of this folder'),
    'pickled': (pickle, 'pickled weights can run code and are not read: save the'),
    'no_weights': (lose_all_weights, 'lacks model.safetensors: copy'),
    'template': (
        lambda f: (f / 'chat_template.jinja').write_bytes(b'{{ "\xff" }}'),
        'chat_template.jinja is not UTF-8',
    ),
    'no_config': (lambda f: (f / 'config.json').unlink(), 'has no config.json'),
    'no_json': (lambda f: (f / 'config.json').write_text('{'), 'is not JSON'),
    'unknown': (change_config(model_type='mamba'), "'mamba' is not supported: use one"),
    'vision': (change_config(model_type='gemma3'), 'has a vision tower'),
    'activation': (change_config(hidden_act='relu'), "hidden_act='relu' is not supp"),
    'shape': (change_config(intermediate_size=49), 'config.json says (49, 32)'),
    'layers': (change_config(num_hidden_layers=4), 'lacks model.layers.3.'),
    'billions': (change_config(num_hidden_layers=10**9), 'num_hidden_layers=1,000,0'),
    'billions_of_gemma': (
        change_config(num_hidden_layers=10**9, model_type='gemma2'),
        'num_hidden_layers=1,000,0',
    ),
    'wide': (change_config(intermediate_size=10**12), 'config.json says (1000000000'),
    'deep': (lambda f: (f / 'config.json').write_text('[' * 10**5), 'is not JSON'),
    'quantized': (
        change_config(quantization_config=dict(quant_method='awq')),
        'quantization_config: quantized weights are not supported',
    ),
    'heads': (change_config(num_attention_heads=0), 'config.json'),
    'type': (change_config(hidden_size='wide'), 'config.json'),
    'few': (change_tensors(lambda t: t.pop(NORM)), f'lacks {NORM} (1 in all)'),
    'many': (
        change_tensors(lambda t: t.update(more=np.zeros(3))),
        'has an unknown tensor, more (1 in all)',
    ),
    'dtype': (
        change_tensors(lambda t: t.update({NORM: np.zeros(32, np.int8)})),
        f'{NORM} has the dtype I8',
    ),
    'tokenizer': (take_the_tokenizer_of_another_model, 'the tokenizer has'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_folders_are_refused(good, tmp_path, capsys, name):
    damage, message = BAD[name]
    folder, run = tmp_path / 'folder', tmp_path / 'run'
    shutil.copytree(good, folder)
    damage(folder)
    assert runs.gptjax('import', '--from', folder, '--workdir', run) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ') and message in error, error
    assert not run.exists()


def test_a_full_disk(good, tmp_path, capsys, monkeypatch):
    run, out = tmp_path / 'run', tmp_path / 'out'
    with monkeypatch.context() as full:
        full.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=0))
        assert runs.gptjax('import', '--from', good, '--workdir', run) == 2
    assert 'No space left on device' in capsys.readouterr().err
    assert not (run / 'config.json').exists()
    assert runs.gptjax('import', '--from', good, '--workdir', run) == 0

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_model, 'write_weights', fail)
    assert runs.gptjax('export', '--workdir', run, '--to', out) == 2
    assert 'No space left on device): free some space' in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [run]


def test_a_folder_with_files_is_not_overwritten(good, tmp_path, capsys):
    run = tmp_path / 'run'
    assert runs.gptjax('import', '--from', good, '--workdir', run) == 0
    assert runs.gptjax('export', '--workdir', run, '--to', good) == 2
    assert 'there is something already' in capsys.readouterr().err


def test_a_killed_import_continues(good, tmp_path, monkeypatch):
    """The process ends at each of its steps; the next one gives the same bytes."""
    from gptjax.convert import import_model

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    run, whole = tmp_path / 'run', tmp_path / 'whole'
    for place in ('import_tokenizer', '_copy_small_files', '_write_checkpoint'):
        with monkeypatch.context() as here:
            here.setattr(import_model, place, killed)
            with pytest.raises(Killed):
                import_model.import_model(good, run)
        assert not (run / 'config.json').exists()
    import_model.import_model(good, run)
    import_model.import_model(good, whole)
    records = [
        json.loads(next(folder.glob('checkpoints/*/record/*')).read_text())
        for folder in (run, whole)
    ]
    assert records[0] == records[1]
