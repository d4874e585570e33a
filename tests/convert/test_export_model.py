"""Runs leave as folders that `transformers` reads."""

import itertools
import json
import math
import subprocess
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import ModelCard

from gptjax.convert import export_model, hf_llama, rotary_scaling
from gptjax.convert.hf_folder import Folder
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval.perplexity import windows_of
from gptjax.models import gpt
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train.load_model import Trained
from tests import helpers, runs
from tests.convert import made_models
from tests.convert.test_families import MODELS, read_params, saved  # noqa: F401
from tests.tokenizer.downloads import other_python

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# transformers describes these in config.json, and our settings have only the result.
SCALED = 'llama3', 'llama_linear', 'llama_yarn', 'phi3_long', 'gemma3'
EXPORTED = [name for name in MODELS if name not in SCALED]


def export_as_new(folder, target):
    """Exports a model as if it had been trained here; returns its parameters."""
    trained = Trained(folder.settings, read_params(folder), None, 0)
    description = export_model.describe_new(folder.settings)
    dtypes = dict.fromkeys(
        export_model.tensor_names(description, folder.settings), 'F32'
    )
    export_model.write_weights(target, description.family, trained, dtypes)
    (target / 'config.json').write_text(json.dumps(description.config))
    return trained.params


@pytest.mark.parametrize('saved', EXPORTED, indirect=True)
def test_an_export_gives_the_same_logits_and_comes_back_bitwise(saved, tmp_path):  # noqa: F811
    path, tokens_BT, logits_BTV = saved
    folder = Folder(path)
    params = export_as_new(folder, tmp_path)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation='eager', dtype=torch.float32
    )
    with torch.no_grad():
        theirs_BTV = model(torch.tensor(tokens_BT)).logits.numpy()
    scale = np.abs(logits_BTV).max()
    np.testing.assert_allclose(theirs_BTV, logits_BTV, atol=2e-5 * scale, rtol=0)
    again = Folder(tmp_path)
    assert again.settings == folder.settings
    jax.tree.map(np.testing.assert_array_equal, read_params(again), params)


READ_IT = """
import sys
import numpy as np, torch, transformers
assert transformers.__version__.startswith('4.')
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], attn_implementation='eager', dtype=torch.float32
)
tokens_BT, logits_BTV = np.load(sys.argv[2]).values()
theirs_BTV = model(torch.tensor(tokens_BT)).logits.detach().numpy()
scale = np.abs(logits_BTV).max()
np.testing.assert_allclose(theirs_BTV, logits_BTV, atol=2e-5 * scale, rtol=0)
"""


def write_trained_on(folder, target):
    """The folder of a run that started from an imported one; returns config.json."""
    config = rotary_scaling.older_fields(folder.config) | folder.config
    (target / 'config.json').write_text(json.dumps(config))
    (target / 'model.safetensors').symlink_to(folder.path / 'model.safetensors')
    return config


def test_older_fields_of_rotary_positions_say_what_the_newer_one_says(saved, tmp_path):  # noqa: F811
    path, tokens_BT, logits_BTV = saved
    folder = Folder(path)
    config = write_trained_on(folder, tmp_path)
    assert folder.config.get('rope_theta') is None
    if config.pop('rope_parameters', None):  # which transformers 4 does not know
        fields = folder.family.model_fields(config)
        assert fields == folder.family.model_fields(folder.config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation='eager'
    )
    with torch.no_grad():
        theirs_BTV = model(torch.tensor(tokens_BT)).logits.numpy()
    np.testing.assert_array_equal(theirs_BTV, logits_BTV)


@pytest.mark.long
@pytest.mark.parametrize('write', [export_as_new, write_trained_on])
def test_transformers_4_gives_the_same_logits(saved, tmp_path, request, write):  # noqa: F811
    path, *tokens_and_logits = saved
    if write is export_as_new and request.node.callspec.params['saved'] in SCALED:
        pytest.skip('no family has its frequencies')
    python = other_python('transformers-4-torch', 'transformers<5', 'torch==2.13.0')
    write(Folder(path), tmp_path)
    np.savez(tmp_path / 'given.npz', *tokens_and_logits)
    command = python, '-c', READ_IT, tmp_path, tmp_path / 'given.npz'
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_import_then_export_gives_the_same_folder(tmp_path, dtype, monkeypatch):
    folder, run, out = (tmp_path / name for name in ('folder', 'run', 'out'))
    made_models.write_folder(folder, 'Gemma2', dtype=dtype)
    assert runs.gptjax('import', '--from', folder, '--workdir', run) == 0
    assert runs.gptjax('export', '--workdir', run, '--to', out) == 0
    names = {path.name for path in folder.iterdir()}
    assert names | {'README.md'} == {path.name for path in out.iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name

    monkeypatch.setattr(export_model, 'SHARD_BYTES', 50_000)
    sharded, back = tmp_path / 'sharded', tmp_path / 'back'
    assert runs.gptjax('export', '--workdir', run, '--to', sharded) == 0
    assert len([*sharded.glob('*.safetensors')]) > 1
    assert runs.gptjax('import', '--from', sharded, '--workdir', back) == 0
    again = read_params(Folder(sharded))
    jax.tree.map(np.testing.assert_array_equal, again, read_params(Folder(folder)))


def test_transformers_4_opens_a_class_of_transformers_5(tmp_path):
    """In 5 both names are one class; 4 knows only the one that leaves."""
    folder, run, out = (tmp_path / name for name in ('folder', 'run', 'out'))
    made_models.write_folder(folder)
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    storage.write_json(
        folder / 'tokenizer_config.json',
        config | dict(tokenizer_class='TokenizersBackend'),
    )
    assert runs.gptjax('import', '--from', folder, '--workdir', run) == 0
    assert runs.gptjax('export', '--workdir', run, '--to', out) == 0
    assert storage.read_json(out / 'tokenizer_config.json') == config | dict(
        tokenizer_class='PreTrainedTokenizerFast'
    )


def test_one_tensor_at_a_time_is_in_memory_and_the_file_is_that_of_the_library(
    tmp_path, monkeypatch
):
    settings = helpers.model_settings(mlp='swiglu', width=128, num_layers=4)
    params = jax.tree.map(
        lambda leaf: jax.numpy.arange(leaf.size).reshape(leaf.shape) % 999.0,
        gpt.abstract_params(settings),
    )
    trained = Trained(settings, params, None, 0)
    tensors = export_model.iterate_tensors(hf_llama.FAMILY, trained)
    kinds = itertools.cycle([*export_model.DTYPES])
    dtypes = dict(zip([name for name, _ in tensors], kinds, strict=False))
    tracemalloc.start()
    try:
        export_model.write_weights(tmp_path, hf_llama.FAMILY, trained, dtypes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    written = (tmp_path / 'model.safetensors').read_bytes()
    assert peak < len(written) / 2
    arrays = {
        name: np.ascontiguousarray(tensor.astype(export_model.DTYPES[dtypes[name]]))
        for name, tensor in export_model.iterate_tensors(hf_llama.FAMILY, trained)
    }
    assert written == safetensors.numpy.save(arrays, dict(format='pt'))
    monkeypatch.setattr(export_model, 'tensor_shape', lambda rule, shapes: (1,))
    with pytest.raises(ValueError, match='the array has the shape'):
        export_model.write_weights(tmp_path, hf_llama.FAMILY, trained, dtypes)


def test_places_that_cannot_be_written(tmp_path, capsys):
    file, target = tmp_path / 'file', tmp_path / 'out'
    file.write_text('')
    with pytest.raises(UserError, match='file is a file: name another place'):
        storage.refuse_existing(file / 'a' / 'out')
    # Another process writes there in the meantime: the one that ends first makes it.
    with (
        pytest.raises(UserError, match='out: there is something already'),
        storage.writing_draft(target) as draft,
    ):
        draft.mkdir()
        (draft / 'a').write_text('first to begin')
        with storage.writing_draft(target) as other:
            other.mkdir()
            (other / 'b').write_text('first to end')
        assert f'{draft.parent} is a draft of another' in capsys.readouterr().err
    assert [path.read_text() for path in target.iterdir()] == ['first to end']
    with (
        pytest.raises(UserError, match='b.*: Not a directory'),
        storage.writing_draft(tmp_path / 'b' / 'out') as draft,
    ):
        draft.parent.rmdir()
        (tmp_path / 'b').rmdir()
        (tmp_path / 'b').write_text('')
        draft.mkdir()
    assert {*tmp_path.iterdir()} == {file, target, tmp_path / 'b'}


def test_a_model_without_a_family_is_refused_with_its_fields():
    with pytest.raises(UserError, match=r"lacks model\.mlp='relu2': train one"):
        export_model.describe_new(helpers.model_settings(mlp='relu2', qk_norm=True))


@pytest.mark.slow
def test_bits_per_byte_are_those_under_transformers(prepared_run, tmp_path):
    run = runs.copy(prepared_run, tmp_path / 'run')
    flags = '--config.model.mlp=swiglu', '--config.model.qk_norm=False'
    assert runs.gptjax('pretrain', *runs.SHORT, *flags, '--workdir', run) == 0
    assert runs.gptjax('eval', '--workdir', run) == 0
    out = tmp_path / 'out'
    assert runs.gptjax('export', '--workdir', run, '--to', out) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = load_tokenizer(run / 'tokenizer')
    evaluation = json.loads((run / 'eval.json').read_text())
    nats = num_bytes = 0
    for line in (run / 'documents' / 'validation.jsonl').read_text().splitlines():
        document = json.loads(line)
        ids = tokenizer.encode(document['text'])
        stream = torch.tensor([tokenizer.bos_id, *ids, tokenizer.eos_id])
        num_bytes += len(document['text'].encode())
        for _, start, first, end in windows_of([stream], 64, 32):
            with torch.no_grad():
                logits_TV = model(stream[None, start:end]).logits[0].double()
            targets = stream[first + 1 : end + 1]
            logprobs = logits_TV.log_softmax(-1)[first - start :]
            nats -= float(logprobs.gather(1, targets[:, None]).sum())
    ours = evaluation['results']['bits_per_byte']
    assert ours == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    [written] = ModelCard.load(out / 'README.md').data.eval_results
    assert (written.metric_type, written.metric_value) == ('bits_per_byte', ours)
