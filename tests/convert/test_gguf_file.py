"""Runs of the Llama layout leave as GGUF, and others are refused by name."""

import json
from itertools import islice

import jax
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file

from gptjax.bench.llama_cpp_generate import gguf_name, pair_neighbours
from gptjax.convert import hf_llama
from gptjax.convert.export_model import iterate_tensors
from gptjax.core import run_dir
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train.load_model import inference_mesh, load_model
from tests import runs
from tests.convert import made_models, test_export_tokenizer
from tests.convert.test_families import LLAMA3

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
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


def write_llama(folder, **fields):
    """A Llama of `transformers` with a tokenizer of ours; returns the model."""
    test_export_tokenizer.export(folder)
    size = 700  # of the tokenizer
    fields = made_models.SIZES | dict(vocab_size=size) | fields
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    made_models.randomise(model)
    model.save_pretrained(folder / 'hf')
    return model


@pytest.mark.parametrize('tied', [False, True])
def test_an_imported_llama(tmp_path, tied):
    """The values of the folder; rows of queries and keys as llama.cpp orders them."""
    run, path = tmp_path / 'imported', tmp_path / 'a.gguf'
    scaling = LLAMA3 if tied else dict(rope_type='default', rope_theta=500.0)
    model = write_llama(tmp_path, tie_word_embeddings=tied, rope_parameters=scaling)
    assert runs.gptjax('import', '--from', tmp_path / 'hf', '--workdir', run) == 0
    assert runs.gptjax('export', '--workdir', run, '--to', path) == 0

    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(tensor.shape[::-1]) for name, tensor in stored.items()}
    values = {n: gguf.dequantize(t.data, t.tensor_type) for n, t in stored.items()}
    if tied:
        base_h = 500.0 ** -(np.arange(4) / 4)
        scaled_h = base_h / values.pop('rope_freqs.weight')
        np.testing.assert_allclose(scaled_h, model.model.rotary_emb.inv_freq, rtol=1e-6)
    tensors = load_file(tmp_path / 'hf' / 'model.safetensors')
    assert ('lm_head.weight' in tensors) != tied
    for name, tensor in tensors.items():
        heads = dict(q_proj=4, k_proj=2).get(name.split('.')[-2])
        if heads:  # `permute` of convert_hf_to_gguf.py
            split = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = split.swapaxes(1, 2).reshape(tensor.shape)
        found = gguf_name(name)
        assert shapes[found] == tensor.shape
        np.testing.assert_array_equal(values.pop(found), tensor)
    assert not values
    field = lambda name: reader.get_field(f'llama.{name}').contents()
    assert field('attention.head_count_kv') == 2
    assert field('rope.freq_base') == 500.0
    assert field('attention.layer_norm_rms_epsilon') == np.float32(1e-6)


@pytest.mark.long
def test_llama_cpp_gives_the_same_ids_and_replies(tmp_path):
    llama_cpp = pytest.importorskip('llama_cpp')
    run, path, sample = (tmp_path / n for n in ('imported', 'a.gguf', 'a.json'))
    write_llama(tmp_path, rope_parameters=LLAMA3)
    assert runs.gptjax('import', '--from', tmp_path / 'hf', '--workdir', run) == 0
    assert runs.gptjax('export', '--workdir', run, '--to', path) == 0
    flags = '--temperature=0', '--max_tokens=40', '--prompt=the hat', f'--json={sample}'
    assert runs.gptjax('sample', '--workdir', run, *flags) == 0
    ours = json.loads(sample.read_text())

    # 0: float32, in the cache too
    llama = llama_cpp.Llama(str(path), n_ctx=128, type_k=0, type_v=0, verbose=False)
    tokenizer = load_tokenizer(run / 'tokenizer')
    for text in test_export_tokenizer.make_texts(2000):
        if '\u2581' not in text and '\0' not in text:
            ids = llama.tokenize(text.encode(), add_bos=False, special=False)
            assert ids == tokenizer.encode(text), repr(text)
    assert llama.tokenize(b'the hat') == ours['prompt_ids']
    replies = llama.generate(ours['prompt_ids'], top_k=1, temp=0.0)
    assert [*islice(replies, len(ours['reply_ids']))] == ours['reply_ids']
    assert len(set(ours['reply_ids'])) > 5


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
