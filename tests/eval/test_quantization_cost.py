"""What bytes cost is measured on held-out text."""

import shutil

import numpy as np
import pytest

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.eval import quantization_cost
from gptjax.train.load_model import load_engine
from tests import runs


@pytest.fixture
def config(trained_run):
    return run_dir.read_config(trained_run)


@pytest.mark.slow
def test_the_change_is_small_and_none_without_bytes(trained_run, config):
    change = quantization_cost.measure_change(config, trained_run, None, 'int8', 'int8')
    assert 0 < abs(change['changed'] - change['whole']) < 0.05 < change['whole']
    same = quantization_cost.measure_change(config, trained_run)
    assert same['changed'] == same['whole'] == change['whole']
    line = quantization_cost.format_change(change, 'int8', 'int8')
    assert f'{change["changed"]:.4f} bits per byte' in line


def test_an_engine_scores_all_bytes_of_a_text(trained_run, config):
    engine = load_engine(config, trained_run, slots=1)
    text = 'How was your day?'
    ours, size = quantization_cost.bits_per_byte(engine, [text])
    assert size == len(text) and np.isfinite(ours)
    # Two engines of the same weights have one fingerprint.
    assert load_engine(config, trained_run, slots=2).fingerprint == engine.fingerprint


def test_engines_that_cannot_be(trained_run, config, tmp_path):
    with pytest.raises(UserError, match='--weights=int4: use one of whole, int8'):
        load_engine(config, trained_run, weights='int4')
    with pytest.raises(UserError, match='--draft=.*is no run directory'):
        load_engine(config, trained_run, draft=tmp_path)
    with pytest.raises(UserError, match='has no checkpoint 7: there are'):
        load_engine(config, trained_run, step=7)


@pytest.mark.slow
def test_a_fine_tuned_run_is_measured_on_what_it_began_with(
    trained_run, config, tmp_path
):
    quantization = dict(weights='int8', cache='whole')
    tuned = runs.copy(trained_run, tmp_path / 'tuned')
    shutil.rmtree(tuned / 'documents')
    with config.unlocked():
        config.start = dict(run=str(trained_run))
    change = quantization_cost.measure_change(config, tuned, **quantization)
    assert change == quantization_cost.measure_change(
        config, trained_run, **quantization
    )
    # Served all the same when that is gone.
    config.start.run = str(tmp_path / 'gone')
    line = quantization_cost.describe_cost(config, tuned, None, **quantization)
    assert 'not measured' in line and str(tuned) in line
    assert (
        quantization_cost.describe_cost(config, tuned, None, 'whole', 'whole') is None
    )


@pytest.mark.slow
def test_a_run_may_guess_for_itself(trained_run, config):
    engine = load_engine(config, trained_run, slots=1, draft=trained_run, guesses=2)
    alone = load_engine(config, trained_run, slots=1)
    other = load_engine(config, trained_run, slots=1, draft=trained_run, guesses=3)
    # Each draws other replies from a seed.
    assert len({one.fingerprint for one in (engine, alone, other)}) == 3
    how = quantization_cost.SamplingParameters(max_tokens=12, temperature=0.0)
    prompt = [engine.tokenizer.bos_id]
    assert (
        engine.complete([prompt], how)[0].text == alone.complete([prompt], how)[0].text
    )


def test_another_tokenizer_may_not_guess(trained_run, config, tmp_path):
    other = runs.copy(trained_run, tmp_path / 'other')
    model = other / 'tokenizer' / 'tokenizer.model'
    # A field that SentencePiece does not know changes nothing but the hash.
    model.write_bytes(model.read_bytes() + b'\xa2\x06\x01x')
    with pytest.raises(UserError, match='was trained with another tokenizer'):
        load_engine(config, trained_run, draft=other)
