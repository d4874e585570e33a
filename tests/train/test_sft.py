"""Fine-tuning of all parameters and by LoRA, from an earlier run, on other meshes."""

import functools
import json
import math
import shutil
from types import SimpleNamespace
from unittest import mock

import jax
import pytest

from configs import common
from configs import sft as sft_config
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import packed_conversations
from gptjax.parallel.mesh import make_mesh
from gptjax.train import init_from, load_model, loop, sft
from gptjax.train.checkpoint import name_of
from gptjax.train.metrics import MetricsWriter, read_metrics
from tests import helpers, runs

LORA = dict(rank=4, alpha=8.0)


@pytest.fixture(scope='module', autouse=True)
def small():
    """Uses only the devices that the mesh needs, and no TensorBoard, which is slow."""

    def make(section):
        return make_mesh(section, jax.devices()[: math.prod(section.values())])

    writer = functools.partial(MetricsWriter, tensorboard=False)
    with (
        mock.patch.object(sft, 'make_mesh', make),
        mock.patch.object(loop, 'MetricsWriter', writer),
    ):
        yield


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
    """A folder with `mine.jsonl` and a run directory with conversations; copy it."""
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
    """(run directory, config, summary) of a run of four steps."""
    workdir = shutil.copytree(dialogue / 'run', to)
    config = config_of(dialogue, trained_run, lora)
    config.optim.update(options)
    config.mesh.update(mesh or {})
    config = init_from.inherit_config(config, workdir)
    run_dir.write_config(config, workdir)
    return workdir, config, sft.fine_tune(config, workdir)


@pytest.fixture(scope='module')
def full_run(dialogue, trained_run):
    return tuned(dialogue, trained_run, dialogue / 'full')


@pytest.fixture(scope='module')
def lora_run(dialogue, trained_run):
    return tuned(dialogue, trained_run, dialogue / 'lora', LORA)


def params_of(config, workdir):
    return load_model.load_model(config, workdir, helpers.mesh_of(), 4).params


def base_params(config):
    return init_from.load_start(config, helpers.mesh_of()).params


@pytest.mark.slow
@pytest.mark.parametrize('lora', (None, LORA), ids=('full', 'lora'))
def test_with_learning_rate_0_it_is_the_earlier_model(
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
def test_lora_changes_its_matrices_alone(lora_run):
    workdir, config, summary = lora_run
    base, merged = base_params(config), params_of(config, workdir)
    assert summary['parameters'] < 0.5 * sum(x.size for x in jax.tree.leaves(base))
    changed = jax.tree.map(
        lambda before, after: bool((before != after).any()), base, merged
    )
    assert {
        name_of(path)
        for path, is_changed in jax.tree_util.tree_leaves_with_path(changed)
        if is_changed
    } == {
        *(f'layers/attention/{name}' for name in ('query', 'key', 'value', 'out')),
        *(f'layers/mlp/{name}' for name in ('up', 'down')),
    }
    validations = [
        record
        for record in read_metrics(workdir / 'metrics.jsonl')
        if record['split'] == 'validation'
    ]
    assert validations[-1]['loss'] < validations[0]['loss']
    assert all('bits_per_byte' in record for record in validations)


@pytest.mark.slow
def test_lora_is_not_merged_into_other_weights(trained_run, lora_run):
    workdir, config, _ = lora_run
    config = config.copy_and_resolve_references()
    config.start.step = 2 if config.start.step == 4 else 4
    with pytest.raises(UserError, match='checkpoint 4 .* was made with other start'):
        load_model.load_model(config, workdir, helpers.mesh_of())


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_conversations(dialogue, full_run, tmp_path):
    workdir = runs.copy(full_run[0], tmp_path / 'run')
    config = full_run[1].copy_and_resolve_references()
    lines = (dialogue / 'mine.jsonl').read_text().splitlines(keepends=True)
    storage.write_text(tmp_path / 'other.jsonl', ''.join(lines[:100]))
    config.dialogue.sources.own.path = str(tmp_path / 'other.jsonl')
    shutil.rmtree(workdir / 'dialogue')
    packed_conversations.build_dialogue(config, workdir)
    with pytest.raises(UserError, match='checkpoint 4 .* was made with other data'):
        sft.fine_tune(config, workdir)


@pytest.mark.slow
@pytest.mark.parametrize('name', ('full', 'lora'))
def test_another_mesh_gives_the_same_losses(
    name, dialogue, trained_run, request, tmp_path
):
    one = request.getfixturevalue(f'{name}_run')[0]
    lora, mesh = LORA if name == 'lora' else None, dict(data=2, fsdp=2, tensor=2)
    many = tuned(dialogue, trained_run, tmp_path / 'run', lora, mesh)[0]
    for ours, theirs in zip(runs.records(many), runs.records(one), strict=True):
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
    'field, value, message',
    [
        ('lora.rank', -2, 'lora.rank=-2'),
        ('train.num_steps', -1, 'train.num_steps=-1'),
        ('data.context', 512, 'data.context=512 is longer than the model.context=128'),
    ],
)
def test_a_config_that_cannot_train_is_refused(field, value, message):
    config = sft_config.get_config()
    config.data.context = config.model.context
    sft.check_config(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        sft.check_config(config)


def test_lora_with_new_special_tokens_prints_a_warning(tmp_path, capsys):
    config = sft_config.get_config()
    config.data.context = config.model.context
    config.start.run, config.lora.rank = str(tmp_path), 4
    earlier = common.base()
    for template, warned in (('text', True), ('turns', False)):
        earlier.chat.template = template
        run_dir.write_config(earlier, tmp_path)
        sft.check_config(config)
        assert ('cannot train the special tokens' in capsys.readouterr().out) == warned
