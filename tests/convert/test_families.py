"""Our model gives the logits of `transformers`, for a tiny one of each family."""

import json

import jax
import numpy as np
import pytest

from gptjax.convert.hf_folder import Folder
from gptjax.models import gpt
from tests.convert import made_models

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = made_models.SIZES | dict(vocab_size=50, max_position_embeddings=64)
del SIZES['head_dim']
GPT2 = dict(n_embd=32, n_layer=3, n_head=4, vocab_size=50, n_positions=64)
NEOX = {name: value for name, value in SIZES.items() if 'value' not in name}
PLAIN = dict(rope_type='default', rope_theta=500.0)
QUARTER = PLAIN | dict(partial_rotary_factor=0.25)
LLAMA3 = dict(
    rope_type='llama3',
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(
    rope_type='yarn',
    rope_theta=500.0,
    factor=4.0,
    original_max_position_embeddings=16,
)
LONG = dict(
    rope_type='longrope',
    rope_theta=500.0,
    partial_rotary_factor=0.5,
    short_factor=[1.0, 1.5],
    long_factor=[2.0, 5.0],
    original_max_position_embeddings=16,
)
MODELS = {
    'gpt2': ('GPT2Config', GPT2),
    'gpt2_untied': ('GPT2Config', GPT2 | dict(tie_word_embeddings=False, n_inner=40)),
    'pythia': ('GPTNeoXConfig', NEOX | dict(rope_parameters=QUARTER)),
    'neox_serial': ('GPTNeoXConfig', NEOX | dict(use_parallel_residual=False)),
    'llama': ('LlamaConfig', SIZES),
    'llama_tied': (
        'LlamaConfig',
        SIZES | dict(tie_word_embeddings=True, head_dim=6, rope_parameters=PLAIN),
    ),
    'llama3': ('LlamaConfig', SIZES | dict(rope_parameters=LLAMA3)),
    'llama_linear': (
        'LlamaConfig',
        SIZES
        | dict(rope_parameters=dict(rope_type='linear', factor=3.0, rope_theta=9.0)),
    ),
    'llama_yarn': ('LlamaConfig', SIZES | dict(rope_parameters=YARN)),
    'mistral': ('MistralConfig', SIZES | dict(sliding_window=5)),
    'qwen2': ('Qwen2Config', SIZES),
    'qwen2_windows': (
        'Qwen2Config',
        SIZES | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    'qwen3': ('Qwen3Config', SIZES | dict(head_dim=16, rope_parameters=PLAIN)),
    'gemma2': (
        'Gemma2Config',
        SIZES
        | dict(
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=10,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    'gemma3': (
        'Gemma3TextConfig',
        SIZES
        | dict(
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=10,
            layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
            rope_parameters=dict(
                sliding_attention=dict(rope_type='default', rope_theta=100.0),
                full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1000.0),
            ),
        ),
    ),
    'olmo2': ('Olmo2Config', SIZES),
    'phi3': ('Phi3Config', SIZES | dict(sliding_window=5)),
    'phi3_long': (
        'Phi3Config',
        SIZES | dict(rope_parameters=LONG, original_max_position_embeddings=16),
    ),
}


@pytest.fixture(scope='module', params=MODELS)
def saved(request, tmp_path_factory):
    """(folder of a random model, its tokens, its logits)."""
    kind, fields = MODELS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation='eager'
    ).eval()
    made_models.randomise(model)
    with torch.no_grad():
        tokens_BT = torch.randint(0, 50, (2, 40))
        logits_BTV = model(tokens_BT).logits.numpy()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, tokens_BT.numpy(), logits_BTV


def read_params(folder, dtype='float32'):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return folder.read_params(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=one),
            gpt.abstract_params(folder.settings),
        )
    )


def test_logits_equal_those_of_transformers(saved):
    path, tokens_BT, logits_BTV = saved
    folder = Folder(path)
    params = read_params(folder)
    jax.tree.map(
        lambda ours, made: np.testing.assert_equal(ours.shape, made.shape),
        params,
        gpt.abstract_params(folder.settings),
    )
    positions_BT = np.broadcast_to(np.arange(40), tokens_BT.shape)
    ours_BTV = gpt.bind(folder.settings, params)(
        tokens_BT, np.ones_like(tokens_BT), positions_BT
    )
    scale = np.abs(logits_BTV).max()
    np.testing.assert_allclose(ours_BTV, logits_BTV, atol=2e-5 * scale, rtol=0)


def test_gpt2_as_the_bare_model_has_it(tmp_path):
    """The names of the published GPT-2 have no prefix."""
    sizes = dict(n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=50)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    model.save_pretrained(tmp_path / 'whole')
    model.transformer.save_pretrained(tmp_path / 'bare')
    whole, bare = (Folder(tmp_path / name) for name in ('whole', 'bare'))
    assert whole.dtypes() == bare.dtypes()
    jax.tree.map(np.testing.assert_array_equal, read_params(whole), read_params(bare))


def test_only_mistral_has_the_window_of_its_config(tmp_path):
    windows = {}
    for kind in ('Llama', 'Mistral'):
        folder = tmp_path / kind
        made_models.write_folder(folder, kind)
        path = folder / 'config.json'
        path.write_text(
            json.dumps(json.loads(path.read_text()) | dict(sliding_window=8))
        )
        windows[kind] = Folder(folder).model.windows
    assert windows == dict(Llama=(0,), Mistral=(8,))
