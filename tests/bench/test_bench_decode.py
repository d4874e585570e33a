"""`bench decode`: the workload, and the engine against fake and real libraries."""

import importlib.util
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax import cli
from gptjax.bench import bench_decode, comparison, hf_weights
from gptjax.bench.bench_decode import make_workload
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.tokenizer import load_tokenizer
from gptjax.train import load_model
from tests import helpers
from tests.bench.test_hf_weights import LLAMA, numpy_logits


def llama_config():
    config = helpers.config(**LLAMA)
    config.tokenizer.vocab_size = helpers.VOCAB
    return config


def test_a_workload_is_spread_evenly_and_always_the_same():
    workload = make_workload(8, context=512, vocab_size=100)
    assert workload == make_workload(8, context=512, vocab_size=100)
    assert sorted(map(len, workload.prompts)) == [23, 37, 51, 65, 79, 93, 107, 121]
    assert sorted(workload.lengths) == [46, 74, 102, 130, 158, 186, 214, 242]
    assert workload.lengths != sorted(workload.lengths)
    assert all(0 <= token < 100 for prompt in workload.prompts for token in prompt)
    assert workload.batch == 8
    assert make_workload(64, 512, 100, slots=8).batch == 8
    single = make_workload(1, 512, 100, slots=8)
    assert (len(single.prompts[0]), single.lengths, single.batch) == (72, [144], 1)


def test_prompts_may_be_cut_from_a_text():
    workload = make_workload(8, 512, 100, text=list(range(1000, 1200)))
    random = make_workload(8, 512, 100)
    assert workload.lengths == random.lengths
    assert list(map(len, workload.prompts)) == list(map(len, random.prompts))
    for prompt in workload.prompts:
        assert prompt == list(range(prompt[0], prompt[0] + len(prompt)))


@pytest.mark.slow
def test_every_reply_has_its_length():
    config = llama_config()
    settings, params, text = bench_decode._load_model(config, None, None)
    assert text == []
    workload = make_workload(5, settings.context, settings.vocab_size, slots=2)
    run_steps, times = bench_decode.make_engine_runner(settings, params, workload)
    assert times.first_token == times.between_tokens == []  # the warm-up does not count
    assert len(run_steps(2)) == 2
    assert list(map(len, times.tokens)) == workload.lengths
    assert len(times.first_token) == 2 * 5
    assert len(times.between_tokens) == 2 * (sum(workload.lengths) - 5)
    assert all(seconds > 0 for seconds in times.first_token)


def fake_library(error=0.0, seconds=2.0):
    """A library with our logits plus `error` that takes `seconds`."""
    commands = []

    @contextmanager
    def library_process(name, module, arguments, python):
        weights = next(a for a in arguments if a.startswith('--weights=')).split('=')[1]
        sizes, arrays = hf_weights.read(weights)

        def call(command):
            commands.append(command)
            if command['do'] == 'logits':
                logits = numpy_logits(sizes, arrays, command['tokens']) + error
                np.save(command['path'], logits)
                return {}
            return dict(seconds=seconds, tokens=[[0] * n for n in command['lengths']])

        yield dict(name=name, threads=1, parameters=0), call

    return library_process, commands


@pytest.mark.slow
def test_implementations_alternate(capsys, monkeypatch):
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    library, commands = fake_library(seconds=2e6)
    monkeypatch.setattr(bench_decode, 'library_process', library)
    results = bench_decode.run(llama_config(), against='torch', requests={1: 1, 2: 1})
    names = 'gptjax', 'torch eager', 'torch compile'
    assert results.keys() == {(name, n) for name in names for n in (1, 2)}
    assert results['torch eager', 2]['speedup']['low'] > 1000
    generated = [c for c in commands if c['do'] == 'generate' and c['batch'] == 2]
    # One warm-up and three rounds, the number of implementations.
    assert len(generated) == 2 * (1 + 3)
    assert {result['steps'] for result in results.values()} == {3}
    workload = make_workload(2, 32, helpers.VOCAB)
    assert all(c == dict(do='generate', **workload._asdict()) for c in generated)
    for n in (1, 2):
        ours = results['gptjax', n]
        assert ours['tokens_per_second'] > 0
        assert 0 < ours['first']['p50'] <= ours['first']['p95']
        assert 0 <= ours['between']['p50'] <= ours['between']['p95']
    output = capsys.readouterr().out
    for text in (
        'gptjax, 1 request ',
        'torch eager, 2 requests',
        'prompts of 1 to 8 tokens, replies of 2 to 16',
        '2 requests: gptjax is ',
        'times as fast as torch eager',
        'by round, median of 3)',
    ):
        assert text in output


def test_other_logits_are_refused(monkeypatch):
    library, _ = fake_library(error=1e-3)
    monkeypatch.setattr(bench_decode, 'library_process', library)
    message = r'^--against: its logits differ .* by 1\.0e-03'
    with pytest.raises(UserError, match=message):
        bench_decode.run(llama_config(), against='llama.cpp', requests={1: 1})


@pytest.mark.parametrize(
    'fields, against, message',
    [
        ({}, 'llama.cpp', "^model.mlp='relu2' .*llama.cpp, which has 'swiglu': use"),
        (dict(norm='layernorm'), 'torch', "^model.norm='layernorm' is not supported"),
        (LLAMA, 'jax', '^--against=jax: use torch or llama.cpp$'),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused(fields, against, message, monkeypatch):
    load_model = lambda *_: (helpers.model_settings(**fields), None, [])
    monkeypatch.setattr(bench_decode, '_load_model', load_model)
    with pytest.raises(UserError, match=message):
        bench_decode.run(helpers.config(**fields), against=against)


def test_a_draft_needs_a_run(tmp_path):
    with pytest.raises(UserError, match='^--draft=.* needs a trained model: use'):
        bench_decode.run(llama_config(), draft=tmp_path)


@pytest.mark.parametrize(
    'position, context', [(None, 4096), ('rotary', 4096), ('learned', 1024)]
)
def test_the_context_is_limited(position, context, tmp_path, monkeypatch):
    """A draft model with learned positions has no more of them."""
    model = helpers.model_settings(context=8192)
    monkeypatch.setattr(bench_decode, '_load_model', lambda *_: (model, None, []))
    draft = position and helpers.model_settings(context=1024, position=position)
    loaded = SimpleNamespace(settings=draft, params=None)
    monkeypatch.setattr(load_model, 'load_draft', lambda *_: loaded)
    monkeypatch.setattr(load_tokenizer, 'load_tokenizer', lambda _: None)
    measured = []
    monkeypatch.setattr(bench_decode, '_measure', lambda *a: measured.append(a) or {})
    run = tmp_path if position else None
    bench_decode.run(helpers.config(), tmp_path, requests={1: 1}, draft=run)
    _, _, used, workload, *_ = measured[0]
    assert used == context
    assert workload == make_workload(1, context, model.vocab_size)


@pytest.mark.slow
def test_a_draft_that_equals_the_model(trained_run, tmp_path, capsys, monkeypatch):
    """Every proposed token is accepted, except for rounding."""
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    config = run_dir.read_config(trained_run)
    results = bench_decode.run(
        config, trained_run, requests={1: 1}, draft=trained_run, guesses=3
    )
    assert results.keys() == {('gptjax', 1), ('with the draft', 1)}
    assert 3 < results['with the draft', 1]['a_step'] <= 4
    output = capsys.readouterr().out
    assert 'gptjax is ' in output and 'times as fast as with the draft' in output
    with pytest.raises(UserError, match='^--draft=.* is not a run directory'):
        bench_decode.run(config, trained_run, draft=tmp_path)


@pytest.mark.parametrize(
    'against, package', [('torch', 'torch'), ('llama.cpp', 'gguf')]
)
def test_a_missing_package_is_named(against, package, tmp_path, monkeypatch):
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
def test_real_libraries_draw_the_same_tokens(against, parts, capsys):
    config = helpers.config(**(dict(num_kv_heads=2) | parts))
    config.tokenizer.vocab_size = helpers.VOCAB
    bench_decode.run(config, against=against, python=sys.executable, requests={3: 1})
    total = sum(make_workload(3, 32, helpers.VOCAB).lengths)
    assert f'{total} of {total} tokens agree' in capsys.readouterr().out
