"""Runs of the Llama layout leave as GGUF, and others are refused by name."""

import jax
import numpy as np
import pytest
import sentencepiece

from gptjax.bench.llama_cpp_generate import gguf_name, pair_neighbours
from gptjax.convert import hf_llama
from gptjax.convert.export_model import iterate_tensors
from gptjax.core import run_dir
from gptjax.train.load_model import inference_mesh, load_model
from tests import runs
from tests.convert import made_models

gguf = pytest.importorskip('gguf')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_llama_that_was_trained_here(prepared_run, tmp_path, dtype):
    run, path = runs.copy(prepared_run, tmp_path / 'run'), tmp_path / 'a.gguf'
    flags = '--config.model.mlp=swiglu', '--config.model.qk_norm=False'
    assert runs.gptjax('pretrain', *runs.SHORT, *flags, '--workdir', run) == 0
    assert (
        runs.gptjax('export', '--workdir', run, '--to', path, f'--dtype={dtype}') == 0
    )

    config = run_dir.read_config(run)
    trained = load_model(config, run, inference_mesh(config))
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in iterate_tensors(hf_llama.FAMILY, trained):
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            tensor = pair_neighbours(tensor, trained.settings.head_dim)
        found = stored.pop(gguf_name(name))
        values = gguf.dequantize(found.data, found.tensor_type)
        rounded = tensor.ndim > 1 and dtype == 'bfloat16'
        expected = tensor.astype(jax.numpy.bfloat16) if rounded else tensor
        np.testing.assert_array_equal(values, expected.astype(np.float32))
    assert not stored

    field = lambda name: reader.get_field(name).contents()
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(run / 'tokenizer' / 'tokenizer.model')
    )
    pieces = [model.id_to_piece(token) for token in range(model.vocab_size())]
    assert field('tokenizer.ggml.tokens') == pieces
    assert field('llama.rope.freq_base') == config.model.rotary_base
    assert field('tokenizer.ggml.eos_token_id') == trained.tokenizer.eos_id
    assert field('tokenizer.ggml.add_space_prefix') is False


def test_others_are_refused_by_name(tmp_path, capsys):
    for kind, message in {
        'Qwen3': 'only the Llama layout leaves as GGUF, and this is qwen3',
        'Llama': 'only our own tokenizers leave as GGUF',
    }.items():
        folder, run = tmp_path / kind, tmp_path / f'{kind}_run'
        made_models.write_folder(folder, kind)
        assert runs.gptjax('import', '--from', folder, '--workdir', run) == 0
        path = tmp_path / 'a.gguf'
        assert runs.gptjax('export', '--workdir', run, '--to', path) == 2
        assert message in capsys.readouterr().err
        assert not path.exists()
