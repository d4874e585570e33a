"""Fine-tuning: from where, in full or as adapters, killed, and on other meshes."""

import functools
import json
import math
import shutil
from types import SimpleNamespace

import jax
import pytest

from configs import common
from configs import sft as sft_config
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import packed_conversations
from gptjax.parallel.mesh import make_mesh
from gptjax.train import init_from, load_model, loop, sft
from gptjax.train.metrics import MetricsWriter, read_metrics
from tests import helpers, runs
from tests.train.test_resume import wait_until

LORA = dict(rank=4, alpha=8.0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As many devices as the mesh asks for, and no TensorBoard, which loads slowly."""

    def make(section):
        return make_mesh(section, jax.devices()[: math.prod(section.values())])

    monkeypatch.setattr(sft, 'make_mesh', make)
    writer = functools.partial(MetricsWriter, tensorboard=False)
    monkeypatch.setattr(loop, 'MetricsWriter', writer)


def chat_file(folder):
    lines = [
        dict(
            id=f'c{n}',
            messages=[
                dict(role='user', content=f'what is {n} plus {n}?'),
                dict(role='assistant', content=f'{2 * n}, I think it is'),
            ]
            * (1 + n % 3),
        )
        for n in range(120)
    ]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    storage.write_text(folder / 'mine.jsonl', text)
    return folder / 'mine.jsonl'


@pytest.fixture(scope='module')
def dialogue(trained_run, tmp_path_factory):
    """A run directory with tokenizer and conversations; copy it."""
    folder = tmp_path_factory.mktemp('dialogue')
    config = config_of(folder, trained_run)
    packed_conversations.build_dialogue(
        init_from.inherit_config(config, folder / 'run'), folder / 'run'
    )
    return folder


def config_of(folder, trained_run, lora=None, **train):
    config = sft_config.get_config(f'chat={chat_file(folder)}')
    config.start.run = str(trained_run)
    config.data.validation_fraction = 0.2
    config.mesh.data = 1
    config.sft.epochs = 0.0
    config.optim.update(learning_rate=3e-3, warmup_steps=0)
    config.train.update(num_steps=4, batch_size=8, eval_every=2, eval_batches=0)
    config.train.update(train)
    config.checkpoint.every = 2
    config.lora.update(lora or {})
    return config


def tuned(dialogue, trained_run, to, lora=None, mesh=None, **options):
    """(run directory, its config, summary) after a few steps."""
    workdir = shutil.copytree(dialogue / 'run', to)
    config = config_of(dialogue, trained_run, lora)
    config.optim.update(options)
    config.mesh.update(mesh or {})
    config = init_from.inherit_config(config, workdir)
    run_dir.write_config(config, workdir)
    return workdir, config, sft.fine_tune(config, workdir)


def params_of(config, workdir):
    return load_model.load_model(config, workdir, helpers.mesh_of(), 4).params


def base_params(config):
    return init_from.load_start(config, helpers.mesh_of()).params


@pytest.mark.slow
@pytest.mark.parametrize('lora', (None, LORA), ids=('full', 'lora'))
def test_without_learning_it_is_the_earlier_model(
    dialogue, trained_run, tmp_path, lora
):
    workdir, config, summary = tuned(
        dialogue, trained_run, tmp_path / 'run', lora, learning_rate=0.0
    )
    helpers.assert_trees_close(params_of(config, workdir), base_params(config))
    assert summary['reason'] == 'finished' and summary['step'] == 4
    losses = [r['loss'] for r in read_metrics(workdir / 'metrics.jsonl')]
    assert summary['validation']['loss'] == losses[-1]


@pytest.mark.slow
def test_adapters_train_alone_and_are_merged(dialogue, trained_run, tmp_path):
    workdir, config, summary = tuned(dialogue, trained_run, tmp_path / 'run', LORA)
    base, merged = base_params(config), params_of(config, workdir)
    assert summary['parameters'] < 0.5 * sum(x.size for x in jax.tree.leaves(base))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator='/')
        for (path, before), after in zip(
            jax.tree_util.tree_leaves_with_path(base),
            jax.tree.leaves(merged),
            strict=True,
        )
        if (before != after).any()
    }
    assert changed == {
        *(f'layers/attention/{name}' for name in ('query', 'key', 'value', 'out')),
        *(f'layers/mlp/{name}' for name in ('up', 'down')),
    }
    found = read_metrics(workdir / 'metrics.jsonl')
    losses = [r['loss'] for r in found if r['split'] == 'validation']
    assert losses[-1] < losses[0]
    assert all('bits_per_byte' in r for r in found if r['split'] == 'validation')

    # What it began with has changed since: that is said, and not computed with.
    other = runs.copy(trained_run, tmp_path / 'other')
    shutil.rmtree(other / 'checkpoints' / '00000002')
    moved = config.copy_and_resolve_references()
    moved.start.run, moved.start.step = str(other), 4
    if config.start.step == 4:
        moved.start.run, moved.start.step = str(trained_run), 2
    with pytest.raises(UserError, match='checkpoint 4 .* was made with other start'):
        load_model.load_model(moved, workdir, helpers.mesh_of())


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_conversations(dialogue, trained_run, tmp_path):
    workdir, config, _ = tuned(dialogue, trained_run, tmp_path / 'run')
    lines = (dialogue / 'mine.jsonl').read_text().splitlines(keepends=True)
    storage.write_text(tmp_path / 'other.jsonl', ''.join(lines[:100]))
    config.dialogue.sources.own.path = str(tmp_path / 'other.jsonl')
    shutil.rmtree(workdir / 'dialogue')
    packed_conversations.build_dialogue(config, workdir)
    with pytest.raises(UserError, match='checkpoint 4 .* was made with other data'):
        sft.fine_tune(config, workdir)


@pytest.mark.slow
@pytest.mark.parametrize('lora', (None, LORA), ids=('full', 'lora'))
def test_another_mesh_gives_the_same(dialogue, trained_run, tmp_path, lora):
    found = []
    for name, mesh in (('one', {}), ('many', dict(data=2, fsdp=2, tensor=2))):
        workdir, _, _ = tuned(dialogue, trained_run, tmp_path / name, lora, mesh)
        found.append(runs.records(workdir))
    for ours, theirs in zip(*found, strict=True):
        assert ours['step'] == theirs['step'] and ours['split'] == theirs['split']
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=2e-5)


def test_epochs_are_steps():
    source = lambda name, rows: SimpleNamespace(name=name, num_rows=rows)
    sources = [source('pretrained_chats', 90), source('pretraining/b', 9999)]
    rows = SimpleNamespace(sources=sources)
    config = sft_config.get_config()
    config.train.batch_size = 16
    for epochs, share, steps in (
        (2.0, 0.0, math.ceil(180 / 16)),
        (2.0, 0.5, math.ceil(180 / 8)),
        (1e-9, 0.0, 1),
    ):
        config.sft.update(epochs=epochs, pretraining_share=share)
        found = sft.with_steps(config, rows)
        assert found.train.num_steps == steps
        assert found.optim.warmup_steps == min(20, steps // 10)


@pytest.mark.parametrize(
    'field, value, told',
    [
        ('lora.rank', -2, 'lora.rank=-2'),
        ('train.num_steps', -1, 'train.num_steps=-1'),
        ('data.context', 512, 'data.context=512 is longer than the model.context=128'),
    ],
)
def test_what_cannot_train_is_refused_before_there_is_data(field, value, told):
    config = sft_config.get_config()
    config.data.context = config.model.context
    sft.check_config(config)
    section, name = field.split('.')
    config[section][name] = value
    with pytest.raises(UserError, match=told):
        sft.check_config(config)


def test_adapters_and_special_tokens_that_nobody_has_taught(tmp_path, capsys):
    config = sft_config.get_config()
    config.data.context = config.model.context
    config.start.run, config.lora.rank = str(tmp_path), 4
    earlier = common.base()
    for template, told in (('text', True), ('turns', False)):
        earlier.chat.template = template
        run_dir.write_config(earlier, tmp_path)
        sft.check_config(config)
        assert ('cannot train the special tokens' in capsys.readouterr().out) == told


# ---- whole runs


def command(dialogue, trained_run, workdir, *more):
    return (
        'sft',
        f'--config=configs/sft.py:chat={dialogue / "mine.jsonl"}',
        f'--config.start.run={trained_run}',
        f'--workdir={workdir}',
        '--config.data.validation_fraction=0.2',
        '--config.sft.epochs=0.0',
        '--config.train.num_steps=24',
        '--config.train.batch_size=8',
        '--config.train.eval_every=6',
        '--config.checkpoint.every=6',
        *more,
    )


@pytest.mark.slow
@pytest.mark.parametrize('more', ((), ('--config.lora.rank=4',)), ids=('full', 'lora'))
def test_a_killed_run_goes_on_bitwise(more, dialogue, trained_run, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    output, _ = runs.finish(runs.start(*command(dialogue, trained_run, whole, *more)))
    assert 'finished at step 24' in output and 'bits per byte of replies' in output
    process = runs.start(*command(dialogue, trained_run, killed, *more))
    checkpoint = killed / 'checkpoints' / '00000006' / '_CHECKPOINT_METADATA'
    wait_until(process, checkpoint.exists, seconds=300)
    process.kill()
    process.communicate()
    output, _ = runs.finish(runs.start(*command(dialogue, trained_run, killed, *more)))
    assert 'resuming from the checkpoint of step' in output
    assert runs.records(killed) == runs.records(whole)


@pytest.mark.slow
def test_early_stopping_and_what_a_run_may_not_change(dialogue, trained_run, tmp_path):
    words = command(
        dialogue, trained_run, tmp_path / 'run', '--config.train.patience=1'
    )
    diverging = ('--config.optim.learning_rate=1.0', '--config.optim.clip_norm=0.0')
    output, _ = runs.finish(runs.start(*words, *diverging))
    assert 'stopped early at step' in output
    _, errors = runs.finish(runs.start(*words, '--config.lora.rank=2'), code=2)
    assert 'was trained with another config (lora.rank: 0 there, 2 here)' in errors
