"""Our weights as GGUF: names, and the order of rotary pairs."""

import numpy as np

from gptjax.bench.llama_cpp_generate import gguf_name, pair_neighbours


def test_rotary_pairs_become_neighbours():
    rows = np.arange(8.0)[:, None]  # two heads of four
    reordered = pair_neighbours(rows, head_dim=4)
    assert reordered[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_names_of_gguf():
    assert gguf_name('model.layers.13.mlp.up_proj.weight') == 'blk.13.ffn_up.weight'
    assert gguf_name('lm_head.weight') == 'output.weight'
