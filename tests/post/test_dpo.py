"""The stage `dpo`: pairs, losses at step 0, whole runs, bad input."""

import json
import math
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import preference_pairs as data
from gptjax.models import settings
from gptjax.parallel.mesh import make_mesh
from gptjax.post import dpo, reference_logprobs
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train import init_from
from gptjax.train.load_model import load_model
from gptjax.train.metrics import read_metrics
from tests import helpers
from tests.post import starts


def pair(prompt, chosen, rejected):
    prompt = [dict(role='user', content=prompt)]
    return dict(prompt=prompt, chosen=chosen, rejected=rejected)


def write_pairs(path, pairs):
    storage.write_text(path, '\n'.join(map(json.dumps, pairs)) + '\n')
    return str(path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a start run and a file of pairs."""
    folder = tmp_path_factory.mktemp('dpo')
    starts.write_start(folder)
    pairs = [pair(f'{n} + {n} =', str(2 * n), 'I do not know') for n in range(40)]
    write_pairs(folder / 'pairs.jsonl', pairs)
    return folder


def config_of(folder, loss='dpo', **changes):
    config = common.base()
    config.start = common.start_section(str(folder / 'start'))
    config.preference = common.preference_section()
    config.preference.update(path=str(folder / 'pairs.jsonl'), epochs=0, loss=loss)
    config.lora = common.lora_section()
    config.chat.template = 'turns'
    config.data.context = 32
    config.optim.update(
        name='adamw', learning_rate=1e-3, schedule='constant', warmup_steps=0
    )
    config.train.update(num_steps=4, batch_size=16, eval_every=2)
    config.checkpoint.update(every=2, keep=4)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def one_device():
    """Uses one device, for which compilation is much faster."""
    one = lambda section: make_mesh(section, jax.devices()[:1])
    with mock.patch.object(dpo, 'make_mesh', one):
        yield


@pytest.fixture(scope='module')
def whole(folder, one_device):
    """An uninterrupted run of DPO: (config, workdir, lines of metrics.jsonl)."""
    workdir = folder / 'whole'
    config, lines = train(config_of(folder), workdir)
    return config, workdir, lines


def prepare(config, workdir):
    """Builds RUN/pairs and returns the config that the stage receives."""
    config = init_from.inherit_config(config, workdir)
    dpo.check_config(config)
    data.build_pairs(config, workdir)
    return config


def train(config, workdir):
    """Trains a run to its end; returns (config, lines of metrics.jsonl)."""
    config = prepare(config, workdir)
    run_dir.write_config(config, workdir)
    summary = dpo.train_on_pairs(config, workdir)
    assert summary['reason'] == 'finished'
    return config, read_metrics(workdir / 'metrics.jsonl')


class World:
    """The inputs of a loss: a model, and pairs with reference log-probabilities."""

    def __init__(self, folder, loss, dtype='float32', **changes):
        workdir = folder / f'world-{loss}-{dtype}'
        self.config = prepare(config_of(folder, loss, **changes), workdir)
        self.config.model.dtype = dtype
        mesh = make_mesh(self.config.mesh, jax.devices()[:1])
        pairs = {split: data.read_pairs(workdir, split) for split in data.SPLITS}
        with jax.set_mesh(mesh):
            start = init_from.load_start(self.config, mesh)
            self.splits = reference_logprobs.add_reference_logprobs(
                self.config, workdir, pairs, mesh, start, is_new=True
            )
        self.params, self.pad = start.params, start.tokenizer.pad_id
        model = settings.resolve(self.config.model, start.tokenizer.vocab_size)
        self.loss_fn = dpo.make_pair_loss(
            self.config, model, dpo.make_policy(self.config)
        )

    def batch(self, chosen):
        return reference_logprobs.make_pair_arrays(
            self.splits['train'], np.array(chosen), 32, self.pad
        )

    def losses(self, chosen=range(8)):
        """(loss, metrics) of a batch, summed over pairs."""
        return jax.jit(self.loss_fn)(self.params, self.batch(chosen), None, 0.0)


# ---- pairs


def test_the_last_reply_alone_is_trained_and_its_end(folder):
    tokenizer = Tokenizer.load(folder / 'start' / 'tokenizer' / 'tokenizer.model')
    texts = ('user', '1 + 1 ='), ('assistant', '2'), ('user', '2 + 2 =')
    earlier = [dict(role=role, content=text) for role, text in texts]
    preference = data.Preference('a#1', earlier, '4', '5 5')
    rows = data.encode_pair(preference, tokenizer, 'turns').rows
    arrays = data.pad_rows(rows, 32, tokenizer.pad_id)
    for number, text in enumerate(('4', '5 5')):
        trained = arrays['weights'][number] == 1
        expected = [*tokenizer.encode(text), tokenizer.specials['<|end|>']]
        assert arrays['targets'][number][trained].tolist() == expected
        inputs = rows[number].tokens[:-1].tolist()
        assert arrays['segments'][number].sum() == len(inputs)
        assert arrays['inputs'][number][: len(inputs)].tolist() == inputs


def test_batches_have_every_pair_once_a_pass():
    steps = [data.choose_pairs(10, 4, seed=3, step=step) for step in range(5)]
    drawn = np.concatenate(steps)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert np.array_equal(data.choose_pairs(10, 4, seed=3, step=2), steps[2])


def test_pairs_of_one_prompt_stay_together(folder):
    section = common.preference_section()
    section.validation_fraction = 0.4
    pairs = [(str(n % 20), n) for n in range(60)]
    splits = data.split_pairs(pairs, section)
    train, validation = ({n % 20 for n in splits[name]} for name in data.SPLITS)
    assert train | validation == set(range(20)) and not train & validation
    # With a hash that would put neither prompt into validation, one of them goes there.
    section.validation_fraction = 1e-9
    splits = data.split_pairs(pairs, section)
    assert len(splits['validation']) == 3


def test_mismatched_replies_are_of_another_prompt():
    def rows(prompt, number):
        tokens = [np.array([1, prompt, 2, 10 * number + kind]) for kind in (3, 4)]
        return (data.Row(row, 3) for row in tokens)

    pairs = [data.Pair('', *rows(p, n)) for n, p in enumerate((7, 7, 8, 7))]
    mismatched = data.mismatch_replies(pairs, context=32)
    assert [row.tokens.tolist() for row in mismatched] == [
        [1, 7, 2, 23],  # of pair 2, the next pair with another prompt
        [1, 7, 2, 24],
        [1, 8, 2, 33],
        [1, 7, 2, 24],  # the search continues at the first pair
    ]
    cut = data.mismatch_replies(pairs, context=2)
    assert [len(row.tokens) for row in cut] == [3] * 4
    with pytest.raises(UserError, match='kto'):
        data.mismatch_replies(pairs[:2], context=32)


# ---- losses


def test_dpo_begins_at_ln_2_and_pulls_with_half_of_beta(folder):
    world = World(folder, 'dpo')
    loss, metrics = world.losses()
    # Two programs compute the same sums of about ten logarithms with other rounding.
    assert float(loss) / 8 == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics['tokens']) == 8

    # d loss / d ln p is -beta / 2 of the chosen reply and beta / 2 of the rejected one.
    # ln q has the opposite sign.
    def by_reference(reference):
        batch = dict(world.batch(range(8)), reference=reference)
        return world.loss_fn(world.params, batch, None, 0.0)[0]

    slopes = jax.grad(by_reference)(jnp.asarray(world.splits['train'].reference[:8]))
    beta = world.config.preference.beta
    np.testing.assert_allclose(slopes, [[beta / 2, -beta / 2]] * 8, rtol=1e-5)


def test_dpo_begins_at_ln_2_in_another_dtype_than_its_start(folder):
    loss, _ = World(folder, 'dpo', 'bfloat16').losses()
    # The rounding of bfloat16. With a reference in float32 the error would be 3e-4.
    assert float(loss) / 8 == pytest.approx(math.log(2), abs=1e-4)


# ---- runs


def test_epochs_make_steps_and_shorten_the_warm_up(folder):
    config = config_of(folder, **{'preference.epochs': 1.5, 'optim.warmup_steps': 10})
    few = dpo.with_steps(config, config.preference.epochs, 33)
    assert (few.train.num_steps, few.optim.warmup_steps) == (4, 2)
    many = dpo.with_steps(config, config.preference.epochs, 1600)
    assert (many.train.num_steps, many.optim.warmup_steps) == (150, 10)
    assert config.train.num_steps == 4 and config.optim.warmup_steps == 10


@pytest.mark.slow
def test_a_run_learns_and_loads_as_a_model(whole):
    config, workdir, lines = whole
    assert lines[0]['split'] == 'train' and lines[0]['pairs'] == 16
    assert lines[0]['loss'] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]['loss'] < 0.6
    assert lines[-1]['accuracy'] == 1.0
    assert {'margin', 'nll', 'chosen_logprob', 'rejected_logprob'} <= lines[-1].keys()
    assert load_model(config, workdir, helpers.mesh_of()).step == 4


def same_losses(lines, others):
    for line, other in zip(lines, others, strict=True):
        # The order of sums differs, and Adam divides by small second moments.
        assert other['loss'] == pytest.approx(line['loss'], rel=1e-3)


@pytest.mark.slow
def test_accumulation_changes_nothing_of_kto(folder, tmp_path, one_device):
    _, lines = train(config_of(folder, 'kto'), tmp_path / 'whole')
    parts = config_of(folder, 'kto', **{'train.accumulation': 2})
    same_losses(lines, train(parts, tmp_path / 'parts')[1])
    assert lines[-1]['loss'] < 0.49
    # Only rounding differs.
    assert lines[0]['kto_baseline'] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bitwise(whole, folder, tmp_path):
    _, workdir, lines = whole
    run = shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(run / 'checkpoints' / '00000004')
    before = (run / reference_logprobs.NAME).read_bytes()
    _, again = train(config_of(folder), run)
    compared = lambda lines: [
        [
            line.get(name)
            for name in ('step', 'split', 'loss', 'grad_norm', 'margin', 'accuracy')
        ]
        for line in lines
    ]
    assert compared(again) == compared(lines)
    assert (run / reference_logprobs.NAME).read_bytes() == before
    # A damaged file is made again.
    shutil.rmtree(run / 'checkpoints' / '00000004')
    (run / reference_logprobs.NAME).write_bytes(before[: len(before) // 2])
    assert compared(train(config_of(folder), run)[1]) == compared(lines)
    assert (run / reference_logprobs.NAME).stat().st_size == len(before)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_pairs(whole, tmp_path):
    config, workdir, _ = whole
    run = shutil.copytree(workdir, tmp_path / 'run')
    other = config.copy_and_resolve_references()
    lines = open(config.preference.path).readlines()
    storage.write_text(tmp_path / 'other.jsonl', ''.join(lines[:-1]))
    other.preference.path = str(tmp_path / 'other.jsonl')
    shutil.rmtree(run / 'pairs')
    data.build_pairs(other, run)
    with pytest.raises(UserError, match='was made with other data'):
        dpo.train_on_pairs(other, run)


@pytest.mark.slow
def test_lora_begins_at_the_base(folder, tmp_path, one_device, monkeypatch):
    config, lines = train(config_of(folder, **{'lora.rank': 2}), tmp_path / 'run')
    assert lines[0]['loss'] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[-1]['loss'] < math.log(2)
    # A run that resumes has the log-probabilities, and loads no reference.
    run = shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    shutil.rmtree(run / 'checkpoints' / '00000004')
    with monkeypatch.context() as patch:
        patch.setattr(reference_logprobs, '_load_reference', None)
        assert train(config, run)[1][-1]['loss'] == lines[-1]['loss']
    # Loading merges the adapter into plain weights.
    assert load_model(config, tmp_path / 'run', helpers.mesh_of()).step == 4


@pytest.mark.slow
def test_another_mesh_gives_the_same_losses(whole, folder, tmp_path):
    meshes = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}
    with mock.patch.object(dpo, 'make_mesh', make_mesh):
        _, eight = train(config_of(folder, **meshes), tmp_path / 'eight')
    same_losses(whole[-1], eight)


# ---- bad input


@pytest.mark.parametrize(
    'changes, pairs, message',
    (
        ({'preference.path': ''}, None, 'preference.path'),
        ({'preference.path': '/no/such'}, None, 'no such'),
        ({}, [pair('a', 'b', 'b')], 'nothing to prefer'),
        ({}, [pair('1 + ' * 40, 'b', 'c')], 'data.context=32: .* a longer context$'),
        (
            {'data.context': 16},
            [pair('1 + ' * 40, 'b', 'c')],
            '--config.data.context=N with N up to 32$',
        ),
        ({}, [dict(prompt=[])], 'no "chosen"'),
        (
            {'preference.loss': 'ipo', 'preference.label_smoothing': 0.1},
            None,
            'does nothing where preference.loss=ipo',
        ),
        (
            {'preference.loss': 'simpo', 'preference.reference': 'runs/a'},
            None,
            "use preference.reference=''",
        ),
    ),
)
def test_bad_input_has_one_clear_error(folder, tmp_path, changes, pairs, message):
    if pairs:
        path = write_pairs(tmp_path / 'pairs.jsonl', pairs)
        changes = changes | {'preference.path': path}
    with pytest.raises(UserError, match=message):
        prepare(config_of(folder, **changes), tmp_path / 'run')


def test_long_and_equal_pairs_are_counted(folder, tmp_path):
    pairs = [pair(str(n), 'b', 'c') for n in range(4)]
    pairs += [pair('5', 'b', 'b'), pair('1 + ' * 40, 'b', 'c')]
    path = write_pairs(tmp_path / 'pairs.jsonl', pairs)
    prepare(config_of(folder, **{'preference.path': path}), tmp_path / 'run')
    manifest = storage.read_json(tmp_path / 'run' / 'pairs' / 'manifest.json')
    assert manifest['lines'] == 6
    assert manifest['skipped'] == dict(equal=1, too_long=1)
    assert sum(split['pairs'] for split in manifest['splits'].values()) == 4


def test_a_reference_of_another_vocabulary_is_refused(folder, tmp_path, one_device):
    from gptjax.tokenizer.train_tokenizer import train_model

    other = starts.write_start(tmp_path)
    # The same run with another tokenizer whose vocabulary has the same size.
    model = train_model(['0 + 1 = 2 3 4 5 6 7 8 9 = 10 10 10'], 'bpe', 278)
    storage.write_bytes(other / 'tokenizer' / 'tokenizer.model', model)
    config = config_of(folder, **{'preference.reference': str(other)})
    config = prepare(config, tmp_path / 'run')
    with pytest.raises(UserError, match='preference.reference=.* tokenizer'):
        dpo.train_on_pairs(config, tmp_path / 'run')


def test_labelled_replies_of_pairs_have_the_loss_of_pairs(folder, one_device, tmp_path):
    """KTO of pairs and of their replies one by one, to the bit; and an odd number."""
    pairs = [pair(f'{n} + {n} =', str(2 * n), 'no idea') for n in range(12)]
    lines = [
        dict(prompt=p['prompt'], completion=p[side], label=side == 'chosen')
        for p in pairs
        for side in ('chosen', 'rejected')
    ]
    config = config_of(folder, 'kto', **{'train.batch_size': 4, 'preference.nll': 0.5})
    start = folder / 'start'
    trained = load_model(run_dir.read_config(start), start, helpers.mesh_of())
    model, params = trained.settings, trained.params
    found = {}
    for name, content in dict(pairs=pairs, labels=lines, odd=lines[:-1]).items():
        run = tmp_path / name
        shutil.copytree(folder / 'start' / 'tokenizer', run / 'tokenizer')
        config.preference.path = write_pairs(tmp_path / f'{name}.jsonl', content)
        data.build_pairs(config, run)
        read = data.read_pairs(run, 'train')
        split = reference_logprobs.Split(
            read,
            np.full((len(read), 2), -3, np.float32),
            data.mismatch_replies(read, 32),
            np.full(len(read), -3, np.float32),
        )
        chosen = np.arange(len(read))
        arrays = split, chosen, 32, 0
        batch = reference_logprobs.make_pair_arrays(*arrays)
        loss_fn = dpo.make_pair_loss(config, model, lambda params: params)
        loss, metrics = loss_fn(params, batch, None, np.float32(0.25))
        mismatched = reference_logprobs.make_mismatched_arrays(*arrays)
        found[name] = loss, metrics, mismatched
    (loss, metrics, mismatched), (other, others, same) = found['pairs'], found['labels']
    assert metrics['tokens'] == others['tokens']
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    helpers.assert_trees_close(same, mismatched)
    assert found['odd'][1]['tokens'] in (others['tokens'] - 0.5, others['tokens'])
    read = data.read_pairs(tmp_path / 'labels', 'train')
    with pytest.raises(UserError, match='preference.loss=dpo compares two replies'):
        data.refuse_labels(read, 'dpo')
