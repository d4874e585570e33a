"""The libraries that `bench decode` is compared with, where they are installed."""

import importlib.util
import sys

import numpy as np
import pytest

from gptjax.bench import bench_decode
from gptjax.bench.llama_cpp_generate import gguf_name, pair_neighbours
from gptjax.bench.workload import make_workload
from tests import helpers


def test_rotary_pairs_become_neighbours():
    rows = np.arange(8.0)[:, None]  # two heads of four
    found = pair_neighbours(rows, head_dim=4)
    assert found[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_names_of_gguf():
    assert gguf_name('model.layers.13.mlp.up_proj.weight') == 'blk.13.ffn_up.weight'
    assert gguf_name('lm_head.weight') == 'output.weight'


LLAMA = dict(mlp='swiglu', qk_norm=False)


def needs(*packages):
    found = all(importlib.util.find_spec(package) for package in packages)
    return pytest.mark.skipif(not found, reason=f'needs {" and ".join(packages)}')


@pytest.mark.slow
@pytest.mark.parametrize(
    'against, parts',
    [
        pytest.param('torch', LLAMA, marks=needs('torch', 'transformers')),
        pytest.param('torch', {}, marks=needs('torch', 'transformers')),
        pytest.param('llama.cpp', LLAMA, marks=needs('llama_cpp', 'gguf')),
    ],
)
def test_it_draws_the_same_tokens(against, parts, capsys):
    config = helpers.config(num_kv_heads=2, **parts)
    config.tokenizer.vocab_size = helpers.VOCAB
    bench_decode.run(config, against=against, python=sys.executable, requests={3: 1})
    total = sum(make_workload(3, 32, helpers.VOCAB).lengths)
    assert f'{total} of {total} tokens agree' in capsys.readouterr().out
