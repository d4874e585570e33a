"""The stage sample: text from prompts."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.eval import samples
from gptjax.eval.samples import sample
from gptjax.infer.request import Update
from gptjax.train.load_model import inference_mesh
from tests import runs


@pytest.fixture(scope='module')
def workdir(trained_run, tmp_path_factory):
    return runs.copy(trained_run, tmp_path_factory.mktemp('sampled') / 'run')


@pytest.fixture(scope='module')
def config(trained_run):
    config = run_dir.read_config(trained_run)
    config.sample.max_tokens = 8
    return config


@pytest.mark.slow
def test_own_prompts_are_printed_as_they_are_drawn(workdir, config, capsys):
    texts = sample(config, workdir, ['Hello', 'naïve ▁'], seed=3)
    printed = capsys.readouterr().out
    for record, prompt in zip(texts, ['Hello', 'naïve ▁'], strict=True):
        assert record['prompt'] == prompt and record['text'].startswith(prompt)
        assert f'--- {prompt!r}\n{record["text"]}\n' in printed
    assert [record['seed'] for record in texts] == [3, 4]
    assert not (workdir / 'samples.json').exists()
    # The same seed gives the same text; a row does not depend on earlier rows.
    assert sample(config, workdir, ['naïve ▁'], seed=4)[0] == texts[1]
    assert sample(config, workdir, ['Hello'], seed=9)[0]['text'] != texts[0]['text']


def test_the_prompts_of_the_config_are_kept_for_the_report(workdir, config):
    texts = sample(config, workdir)
    assert json.loads((workdir / 'samples.json').read_text()) == texts
    assert [record['prompt'] for record in texts] == list(config.sample.prompts)
    assert {record['temperature'] for record in texts} == {config.sample.temperature}
    assert all(isinstance(record['step'], int) for record in texts)


def test_a_bar_until_the_first_piece_and_none_while_it_is_printed(
    config, tmp_path, monkeypatch
):
    shown, seen = [], []

    @contextmanager
    def bar(label, total):
        shown.append(label)
        yield
        shown.pop()

    def note(what, result=None):
        seen.append((what, *shown))
        return result

    engine = SimpleNamespace(
        tokenizer=SimpleNamespace(start_ids=[1], encode=lambda text: [2]),
        trained_step=4,
        warm_up=lambda: note('compiled'),
        reply=lambda *_: note('drawn', [Update('!')]),
    )
    monkeypatch.setattr(samples.console, 'progress_bar', bar)
    monkeypatch.setattr(samples, 'load_engine', lambda *_, **__: note('read', engine))
    (record,) = sample(config, tmp_path, ['Hello'])
    assert record['text'] == 'Hello!'
    loading = 'loading the model'
    assert seen == [('read', loading), ('compiled', loading), ('drawn',)]


@pytest.mark.slow
def test_greedy_does_not_depend_on_the_seed(workdir, config):
    config = ConfigDict(config.to_dict())
    config.sample.temperature = 0.0
    texts = {sample(config, workdir, ['Hello'], seed)[0]['text'] for seed in (0, 1)}
    assert len(texts) == 1


@pytest.mark.parametrize('seed', (-1, 2**32))
def test_seeds_out_of_range(seed, config, tmp_path):
    with pytest.raises(UserError, match=f'--seed={seed}: use'):
        sample(config, tmp_path, ['x'], seed)


@pytest.mark.parametrize('tensor, size', ((1, 1), (4, 4), (-1, 8), (16, 1)))
def test_a_text_is_split_over_the_tensor_axis_alone(tensor, size, config):
    config = ConfigDict(config.to_dict())
    config.mesh.update(data=-1, fsdp=2, tensor=tensor)
    mesh = inference_mesh(config)
    assert mesh.size == mesh.shape['tensor'] == size


@pytest.mark.slow
def test_tensor_parallel_draws_the_same(workdir, config):
    other = ConfigDict(config.to_dict())
    other.mesh.tensor = 4
    assert sample(other, workdir, ['Hello']) == sample(config, workdir, ['Hello'])
