from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import cli
from gptjax.bench import bench_decode, hf_weights, timing
from gptjax.bench.workload import make_workload
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.models import gpt
from tests import helpers

LLAMA = dict(mlp='swiglu', qk_norm=False, num_kv_heads=2)


def llama_config():
    config = helpers.config(**LLAMA)
    config.tokenizer.vocab_size = helpers.VOCAB
    return config


def test_a_workload_is_ragged_and_always_the_same():
    workload = make_workload(8, context=512, vocab_size=100)
    assert workload == make_workload(8, context=512, vocab_size=100)
    assert sorted(map(len, workload.prompts)) == [23, 37, 51, 65, 79, 93, 107, 121]
    assert sorted(workload.lengths) == [46, 74, 102, 130, 158, 186, 214, 242]
    assert workload.lengths != sorted(workload.lengths)
    assert all(0 <= token < 100 for prompt in workload.prompts for token in prompt)
    assert workload.batch == 8


def test_one_request_has_the_middle_of_the_ranges():
    workload = make_workload(1, context=512, vocab_size=100)
    assert (len(workload.prompts[0]), workload.lengths) == (72, [144])


def test_prompts_may_be_pieces_of_a_text():
    text = list(range(1000, 1200))
    workload = make_workload(8, 512, 100, text=text)
    assert workload.lengths == make_workload(8, 512, 100).lengths
    for prompt, random in zip(
        workload.prompts, make_workload(8, 512, 100).prompts, strict=True
    ):
        assert len(prompt) == len(random) and prompt[0] >= 1000
        assert prompt == list(range(prompt[0], prompt[0] + len(prompt)))


def test_slots_limit_what_runs_at_once():
    assert make_workload(64, 512, 100, slots=8).batch == 8
    assert make_workload(1, 512, 100, slots=8).batch == 1


@pytest.mark.slow
def test_every_reply_has_its_length():
    config = llama_config()
    settings, params, text = bench_decode._model(config, None, None)
    assert text == []
    workload = make_workload(5, settings.context, settings.vocab_size, slots=2)
    go, seen = bench_decode.engine_contestant(settings, params, workload)
    assert seen.first == seen.between == []  # the warm-up is left out
    assert len(go(2)) == 2
    assert list(map(len, seen.tokens)) == workload.lengths
    assert len(seen.first) == 2 * 5
    assert len(seen.between) == 2 * (sum(workload.lengths) - 5)
    assert all(seconds > 0 for seconds in seen.first)


@pytest.mark.slow
def test_ours_alone(capsys, monkeypatch):
    monkeypatch.setattr(timing, 'SETTLE_SECONDS', 0)
    results = bench_decode.run(llama_config(), requests={1: 2, 3: 1})
    assert results.keys() == {('gptjax', 1), ('gptjax', 3)}
    for result in results.values():
        assert result['tokens_per_second'] > 0
        assert 0 < result['first']['p50'] <= result['first']['p95']
        assert 0 <= result['between']['p50'] <= result['between']['p95']
    told = capsys.readouterr().out
    assert 'gptjax, 1 request ' in told and 'gptjax, 3 requests' in told
    assert 'prompts of 1 to 8 tokens, replies of 2 to 16' in told


def stand_in(error=0.0, slower=2.0):
    """A contestant whose logits are ours and `error`, and whose turns take long."""
    orders = []

    @contextmanager
    def contestant(name, module, arguments, python):
        weights = next(a for a in arguments if a.startswith('--weights=')).split('=')[1]
        sizes, arrays = hf_weights.read(weights)

        def ask(order):
            orders.append(order)
            if order['do'] == 'logits':
                np.save(
                    order['path'], numpy_logits(sizes, arrays, order['tokens']) + error
                )
                return {}
            return dict(seconds=slower, tokens=[[0] * n for n in order['lengths']])

        yield dict(name=name, threads=1, parameters=0), ask

    return contestant, orders


@pytest.mark.slow
def test_another_library_takes_turns(capsys, monkeypatch):
    monkeypatch.setattr(timing, 'SETTLE_SECONDS', 0)
    contestant, orders = stand_in(slower=1e6)
    monkeypatch.setattr(bench_decode, 'contestant', contestant)
    results = bench_decode.run(llama_config(), against='torch', requests={2: 1})
    assert results.keys() == {
        ('gptjax', 2),
        ('torch eager', 2),
        ('torch compile', 2),
    }
    assert results['torch eager', 2]['speedup']['low'] > 1000
    goes = [order for order in orders if order['do'] == 'go']
    # Each warms up, then has three rounds: with three contestants not fewer.
    assert len(goes) == 2 * (1 + 3)
    assert {result['steps'] for result in results.values()} == {3}
    workload = make_workload(2, 32, helpers.VOCAB)
    assert all(order == dict(do='go', **workload._asdict()) for order in goes)
    told = capsys.readouterr().out
    assert '2 requests: gptjax is ' in told and 'times as fast as torch eager' in told
    assert 'by round, median of 3)' in told and 'torch eager, 2 requests' in told


def test_other_logits_are_refused(monkeypatch):
    contestant, _ = stand_in(error=1e-3)
    monkeypatch.setattr(bench_decode, 'contestant', contestant)
    with pytest.raises(
        UserError, match=r'^--against: its logits differ .* by 1\.0e-03'
    ):
        bench_decode.run(llama_config(), against='llama.cpp', requests={1: 1})


def test_another_architecture_is_refused():
    told = "^--against=llama.cpp: its model.mlp is 'swiglu', and it is 'relu2' here"
    with pytest.raises(UserError, match=told):
        bench_decode.run(helpers.config(), against='llama.cpp')
    with pytest.raises(UserError, match="model.norm is 'rmsnorm', and it is 'layern"):
        bench_decode.run(helpers.config(norm='layernorm'), against='torch')
    with pytest.raises(UserError, match='^--against=jax: use torch or llama.cpp$'):
        bench_decode.run(llama_config(), against='jax')


def test_an_accelerator_is_not_measured_against_a_processor(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    with pytest.raises(UserError, match='^--against=torch .* on the gpu here: leave'):
        bench_decode.run(llama_config(), against='torch')


def test_a_draft_needs_a_run(tmp_path):
    with pytest.raises(UserError, match='^--draft guesses for a trained model: name'):
        bench_decode.run(llama_config(), draft=tmp_path)


@pytest.mark.slow
def test_a_draft_takes_turns(trained_run, tmp_path, capsys, monkeypatch):
    """That is the model itself: it guesses all but what rounding decides."""
    monkeypatch.setattr(timing, 'SETTLE_SECONDS', 0)
    config = run_dir.read_config(trained_run)
    results = bench_decode.run(
        config, trained_run, requests={1: 1}, draft=trained_run, guesses=3
    )
    assert results.keys() == {('gptjax', 1), ('with the draft', 1)}
    assert 3 < results['with the draft', 1]['a_step'] <= 4
    told = capsys.readouterr().out
    assert 'gptjax is ' in told and 'times as fast as with the draft' in told
    with pytest.raises(UserError, match='^--draft=.* is no run directory'):
        bench_decode.run(config, trained_run, draft=tmp_path)


@pytest.mark.parametrize(
    'against, package', [('torch', 'torch'), ('llama.cpp', 'gguf')]
)
def test_what_is_not_installed_is_named(against, package, tmp_path, monkeypatch):
    (tmp_path / f'{package}.py').write_text(f"raise ImportError(name='{package}')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    told = f'^--against={against}: .* has no {package}: .* by --against_python'
    with pytest.raises(UserError, match=told):
        bench_decode.run(llama_config(), against=against)


def test_the_command_needs_a_config(capsys):
    assert cli.main(['gptjax', 'bench', 'decode']) == 2
    assert '--config is missing' in capsys.readouterr().err


# ---- our weights by other names -----------------------------------------------


def numpy_logits(sizes, arrays, tokens):
    """Float64 logits (T, V) of Hugging Face's models, by their names."""
    w = {name: weight.astype(np.float64) for name, weight in arrays.items()}
    T, H = len(tokens), sizes['head_dim']
    N, K = sizes['num_attention_heads'], sizes['num_key_value_heads']
    frequencies = sizes['rope_theta'] ** -(np.arange(0, H, 2) / H)
    angles = np.tile(np.outer(np.arange(T), frequencies), 2)[:, None]  # (T, 1, H)

    def norm(x, name):
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + sizes['rms_norm_eps']) * w[name]

    def turn(x):
        halves = np.concatenate([-x[..., H // 2 :], x[..., : H // 2]], -1)
        return x * np.cos(angles) + halves * np.sin(angles)

    x = w['model.embed_tokens.weight'][list(tokens)]
    for i in range(sizes['num_hidden_layers']):
        layer = f'model.layers.{i}.'
        linear = lambda x, name, layer=layer: x @ w[f'{layer}{name}.weight'].T
        y = norm(x, layer + 'input_layernorm.weight')
        q = linear(y, 'self_attn.q_proj').reshape(T, N, H)
        k = linear(y, 'self_attn.k_proj').reshape(T, K, H)
        if sizes['qk_norm']:
            q = norm(q, layer + 'self_attn.q_norm.weight')
            k = norm(k, layer + 'self_attn.k_norm.weight')
        q, k = turn(q), turn(k).repeat(N // K, 1)
        v = linear(y, 'self_attn.v_proj').reshape(T, K, H).repeat(N // K, 1)
        scores = np.einsum('tnh,snh->nts', q, k) / np.sqrt(H)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum('nts,snh->tnh', scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(mixed.reshape(T, N * H), 'self_attn.o_proj')
        y = norm(x, layer + 'post_attention_layernorm.weight')
        up = linear(y, 'mlp.up_proj')
        if sizes['hidden_act'] == 'relu2':
            up = np.maximum(up, 0) ** 2
        else:
            gate = linear(y, 'mlp.gate_proj')
            up = gate / (1 + np.exp(-gate)) * up
        x = x + linear(up, 'mlp.down_proj')
    return norm(x, 'model.norm.weight') @ w['lm_head.weight'].T


@pytest.mark.slow
@pytest.mark.parametrize('parts', (LLAMA, dict(num_kv_heads=2)), ids=('llama', 'ours'))
def test_the_weights_give_the_same_logits_by_their_new_names(parts, tmp_path):
    settings = helpers.model_settings(**parts, rotary_base=500.0, head_dim=12)
    params = gpt.init_params(settings, jax.random.key(1))
    # Norms that are not all ones, so that exchanging two is seen.
    scale = lambda key, x: x * jax.random.uniform(key, x.shape, minval=0.5, maxval=2)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten(map(scale, keys, leaves))
    hf_weights.write(tmp_path / 'w.npz', settings, params)
    sizes, arrays = hf_weights.read(tmp_path / 'w.npz')
    assert sizes == hf_weights.sizes(settings)
    assert all(weight.dtype == np.float32 for weight in arrays.values())

    tokens_T = np.arange(20) * 7 % helpers.VOCAB
    ones, places = jnp.ones((1, 20), jnp.int32), jnp.arange(20)[None]
    ours = gpt.bind(settings, params)(jnp.asarray(tokens_T)[None], ones, places)[0]
    theirs = numpy_logits(sizes, arrays, tokens_T)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs).max() > 0.1  # far above the tolerance
