"""The cost of int8 on held-out text, and the engine options of a run."""

import shutil

import pytest

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.eval import quantization_cost
from gptjax.infer.request import SamplingParameters
from gptjax.train.load_model import load_engine
from tests import runs


@pytest.fixture
def config(trained_run):
    return run_dir.read_config(trained_run)


def test_the_cost_is_small_and_zero_without_quantization(trained_run, config):
    change = quantization_cost.measure_change(config, trained_run, None, 'int8', 'int8')
    assert 0 < abs(change['changed'] - change['whole']) < 0.05 < change['whole']
    same = quantization_cost.measure_change(config, trained_run)
    assert same['changed'] == same['whole'] == change['whole']
    line = quantization_cost.format_change(change, 'int8', 'int8')
    assert f'{change["changed"]:.4f} bits per byte' in line


def test_a_fine_tuned_run_is_measured_on_documents_of_its_start_run(
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
    # Without the start run, the cost is unknown. This is not an error.
    config.start.run = str(tmp_path / 'gone')
    describe = quantization_cost.describe_cost
    line = describe(config, tuned, None, **quantization)
    assert 'not measured' in line and str(tuned) in line
    assert describe(config, tuned, None, 'whole', 'whole') is None


def test_engines_of_a_run(trained_run, config):
    alone = load_engine(config, trained_run, slots=1)
    text = 'How was your day?'
    bits_per_byte, size = quantization_cost.bits_per_byte(alone, [text])
    assert size == len(text) and 0 < bits_per_byte < 20
    longest = config.model.context
    full = load_engine(config, trained_run, slots=2, context=longest)
    assert full.fingerprint == alone.fingerprint
    # Replies end earlier where the context in use is shorter.
    short = load_engine(config, trained_run, slots=1, context=longest - 1)
    # A run may be its own draft. Sampled replies depend on the number of guesses.
    drafting, other = (
        load_engine(config, trained_run, slots=1, draft=trained_run, guesses=guesses)
        for guesses in (2, 3)
    )
    engines = (alone, drafting, other)
    assert len({engine.fingerprint for engine in (*engines, short)}) == 4
    greedy = SamplingParameters(max_tokens=12, temperature=0.0)
    prompt = [alone.tokenizer.bos_id]
    replies = [engine.complete([prompt], greedy)[0].text for engine in engines[:2]]
    assert replies[0] == replies[1]


def test_engine_options_that_are_refused(trained_run, config, tmp_path):
    other = runs.copy(trained_run, tmp_path / 'other')
    model = other / 'tokenizer' / 'tokenizer.model'
    # SentencePiece ignores this field, but the hash differs.
    model.write_bytes(model.read_bytes() + b'\xa2\x06\x01x')
    for options, message in (
        (dict(weights='int4'), '--weights=int4: use one of whole, int8'),
        (dict(draft=tmp_path), '--draft=.*is not a run directory'),
        (dict(draft=other), 'was trained with another tokenizer'),
        (dict(step=7), 'has no checkpoint 7'),
    ):
        with pytest.raises(UserError, match=message):
            load_engine(config, trained_run, **options)
