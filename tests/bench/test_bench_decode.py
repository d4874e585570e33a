"""Decoding's speed: the workload, ours alone, beside stand-ins and real libraries."""

import importlib.util
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from gptjax import cli
from gptjax.bench import bench_decode, comparison, hf_weights
from gptjax.bench.bench_decode import make_workload
from gptjax.core import run_dir
from gptjax.core.console import UserError
from tests import helpers
from tests.bench.test_hf_weights import LLAMA, numpy_logits


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
    assert make_workload(64, 512, 100, slots=8).batch == 8
    assert make_workload(1, 512, 100, slots=8).batch == 1


def test_one_request_has_the_middle_of_the_ranges():
    workload = make_workload(1, context=512, vocab_size=100)
    assert (len(workload.prompts[0]), workload.lengths) == (72, [144])


def test_prompts_may_be_cut_from_a_text():
    text = list(range(1000, 1200))
    workload = make_workload(8, 512, 100, text=text)
    assert workload.lengths == make_workload(8, 512, 100).lengths
    for prompt, random in zip(
        workload.prompts, make_workload(8, 512, 100).prompts, strict=True
    ):
        assert len(prompt) == len(random) and prompt[0] >= 1000
        assert prompt == list(range(prompt[0], prompt[0] + len(prompt)))


@pytest.mark.slow
def test_every_reply_has_its_length():
    config = llama_config()
    settings, params, text = bench_decode._load_model(config, None, None)
    assert text == []
    workload = make_workload(5, settings.context, settings.vocab_size, slots=2)
    run_steps, times = bench_decode.make_engine_runner(settings, params, workload)
    assert times.first_token == times.between_tokens == []  # without the warm-up
    assert len(run_steps(2)) == 2
    assert list(map(len, times.tokens)) == workload.lengths
    assert len(times.first_token) == 2 * 5
    assert len(times.between_tokens) == 2 * (sum(workload.lengths) - 5)
    assert all(seconds > 0 for seconds in times.first_token)


@pytest.mark.slow
def test_ours_alone(capsys, monkeypatch):
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    results = bench_decode.run(llama_config(), requests={1: 2, 3: 1})
    assert results.keys() == {('gptjax', 1), ('gptjax', 3)}
    for result in results.values():
        assert result['tokens_per_second'] > 0
        assert 0 < result['first']['p50'] <= result['first']['p95']
        assert 0 <= result['between']['p50'] <= result['between']['p95']
    output = capsys.readouterr().out
    assert 'gptjax, 1 request ' in output and 'gptjax, 3 requests' in output
    assert 'prompts of 1 to 8 tokens, replies of 2 to 16' in output


def stand_in(error=0.0, slower=2.0):
    """A library whose logits are ours plus `error`, and whose turns take long."""
    orders = []

    @contextmanager
    def library_process(name, module, arguments, python):
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

    return library_process, orders


@pytest.mark.slow
def test_another_library_takes_turns(capsys, monkeypatch):
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    library, orders = stand_in(slower=1e6)
    monkeypatch.setattr(bench_decode, 'library_process', library)
    results = bench_decode.run(llama_config(), against='torch', requests={2: 1})
    assert results.keys() == {('gptjax', 2), ('torch eager', 2), ('torch compile', 2)}
    assert results['torch eager', 2]['speedup']['low'] > 1000
    generated = [order for order in orders if order['do'] == 'generate']
    # Each warms up, then has three rounds: with three implementations not fewer.
    assert len(generated) == 2 * (1 + 3)
    assert {result['steps'] for result in results.values()} == {3}
    workload = make_workload(2, 32, helpers.VOCAB)
    assert all(
        order == dict(do='generate', **workload._asdict()) for order in generated
    )
    output = capsys.readouterr().out
    assert (
        '2 requests: gptjax is ' in output and 'times as fast as torch eager' in output
    )
    assert 'by round, median of 3)' in output and 'torch eager, 2 requests' in output


def test_other_logits_are_refused(monkeypatch):
    library, _ = stand_in(error=1e-3)
    monkeypatch.setattr(bench_decode, 'library_process', library)
    with pytest.raises(
        UserError, match=r'^--against: its logits differ .* by 1\.0e-03'
    ):
        bench_decode.run(llama_config(), against='llama.cpp', requests={1: 1})


def test_another_architecture_is_refused():
    message = "^--against=llama.cpp: its model.mlp is 'swiglu', and it is 'relu2' here"
    with pytest.raises(UserError, match=message):
        bench_decode.run(helpers.config(), against='llama.cpp')
    with pytest.raises(UserError, match="model.norm is 'rmsnorm', and it is 'layern"):
        bench_decode.run(helpers.config(norm='layernorm'), against='torch')
    with pytest.raises(UserError, match='^--against=jax: use torch or llama.cpp$'):
        bench_decode.run(llama_config(), against='jax')


def test_a_draft_needs_a_run(tmp_path):
    with pytest.raises(UserError, match='^--draft guesses for a trained model: name'):
        bench_decode.run(llama_config(), draft=tmp_path)


@pytest.mark.slow
def test_a_draft_takes_turns(trained_run, tmp_path, capsys, monkeypatch):
    """That is the model itself: it guesses all but what rounding decides."""
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    config = run_dir.read_config(trained_run)
    results = bench_decode.run(
        config, trained_run, requests={1: 1}, draft=trained_run, guesses=3
    )
    assert results.keys() == {('gptjax', 1), ('with the draft', 1)}
    assert 3 < results['with the draft', 1]['a_step'] <= 4
    output = capsys.readouterr().out
    assert 'gptjax is ' in output and 'times as fast as with the draft' in output
    with pytest.raises(UserError, match='^--draft=.* is no run directory'):
        bench_decode.run(config, trained_run, draft=tmp_path)


@pytest.mark.parametrize(
    'against, package', [('torch', 'torch'), ('llama.cpp', 'gguf')]
)
def test_what_is_not_installed_is_named(against, package, tmp_path, monkeypatch):
    (tmp_path / f'{package}.py').write_text(f"raise ImportError(name='{package}')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    message = f'^--against={against}: .* has no {package}: .* by --against_python'
    with pytest.raises(UserError, match=message):
        bench_decode.run(llama_config(), against=against)


def test_the_command_needs_a_config(capsys):
    assert cli.main(['gptjax', 'bench', 'decode']) == 2
    assert '--config is missing' in capsys.readouterr().err


# ---- the real libraries, where they are installed ------------------------------------


def needs(*packages):
    installed = all(importlib.util.find_spec(package) for package in packages)
    return pytest.mark.skipif(not installed, reason=f'needs {" and ".join(packages)}')


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
