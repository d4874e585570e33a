"""The stage `tune` of the command line."""

import pytest

from gptjax.core import run_dir, storage
from tests import runs
from tests.test_main import error_of

SPACE = '--space=optim.learning_rate=log(1e-3,1e-1,2); model.width=choice(32,64)'


@pytest.mark.slow
def test_trials_share_data_and_the_best_config_runs(tmp_path):
    study = tmp_path / 'study'
    words = (
        *runs.SHORT,
        f'--workdir={study}',
        SPACE,
        '--sampler=grid',
        '--pruner=none',
    )
    limits = ('--objectives=loss,tokens_per_second', '--max_params=1000000')
    output, _ = runs.finish(runs.start('tune', *words, *limits))
    assert '4 trials: 4 complete, 0 pruned, 0 failed' in output
    trials = sorted(study.glob('trials/*'))
    for name in ('documents/train.jsonl', 'tokenizer/tokenizer.model'):
        assert len({(trial / name).stat().st_ino for trial in trials}) == 1
    # A trial is made again by the command that its files name.
    environment = storage.read_json(trials[3] / 'environment.json')
    assert environment['command'].startswith('python -m gptjax pretrain --config=')
    assert '--config.model.width=64' in environment['config']
    configs = [run_dir.read_config(trial) for trial in trials]
    assert [config.model.width for config in configs] == [32, 64] * 2
    lowest = min(
        min(
            line['loss']
            for line in runs.records(trial)
            if line['split'] == 'validation'
        )
        for trial in trials
    )
    words = (f'--config={study}/best.py', f'--workdir={tmp_path}/best')
    runs.finish(runs.start('pretrain', *words))
    losses = runs.records(tmp_path / 'best')
    assert lowest == min(
        line['loss'] for line in losses if line['split'] == 'validation'
    )
    assert losses in [runs.records(trial) for trial in trials]


@pytest.mark.parametrize(
    'words, message',
    (
        ((), 'use --config configs/NAME.py, --workdir RUN and --space'),
        ((SPACE.replace(',2)', ')'),), '--trials is missing'),
        ((SPACE, '--trials=9'), 'only --sampler=grid has a number of values'),
        (
            ('--space=optim.lr=log(1,2)', '--trials=9'),
            'optim.lr: there is no such field',
        ),
        (('--space=sft.epochs=int(1,2)', '--trials=9'), 'tiny.py has no such section'),
        (('--space=seed=int(0,9)', '--trials=0'), '--trials=0: use a number of at'),
        (
            ('--space=seed=int(0,9)', '--trials=9', '--config.seed=3'),
            '--config.seed: it is in --space, too',
        ),
        (
            ('--space=seed=int(0,9)', '--trials=9', '--objectives=loss,speed'),
            '--objectives=speed: use some of loss, bits_per_byte, tokens_per_second',
        ),
        (
            (
                *('--space=seed=int(0,9)', '--trials=9', '--pruner=median'),
                '--objectives=loss,tokens_per_second',
            ),
            '--pruner=median: it needs one objective',
        ),
        (
            ('--space=tokenizer.vocab_size=int(300,999)', '--trials=9'),
            'use --objectives=bits_per_byte',
        ),
        (
            ('--space=seed=int(0,9)', '--trials=9', '--stage=sft'),
            'the section `sft`, which this stage needs, is missing',
        ),
        (
            ('--space=seed=int(0,9)', '--trials=9', '--max_flops=-1'),
            '--max_flops=-1.0: use a positive number',
        ),
    ),
)
def test_what_is_refused_before_anything_is_made(words, message, capsys, tmp_path):
    place = ('--config=configs/tiny.py', f'--workdir={tmp_path}/study')
    assert message in error_of(capsys, 'tune', *place, *words)
    assert not (tmp_path / 'study').exists()


def test_model_and_tokenizer_of_an_earlier_run_stay(capsys, tmp_path):
    place = ('--config=configs/sft.py', f'--workdir={tmp_path}/study', '--stage=sft')
    words = ('--space=model.width=choice(32,64)', '--trials=9')
    error = error_of(capsys, 'tune', *place, *words)
    assert '--space: model.width: model and tokenizer are those of start.run' in error


def test_seeds_of_a_stage(capsys, tmp_path):
    words = ('pretrain', '--config=configs/tiny.py', f'--workdir={tmp_path}/seeds')
    assert '--seeds=1: use a number of at' in error_of(capsys, *words, '--seeds=1')
    several = '--config.distributed.num_processes=2'
    error = error_of(capsys, *words, '--seeds=2', several)
    assert 'runs on one host' in error
    error = error_of(capsys, 'sft', *words[1:], '--seeds=2')
    assert 'the section `sft`, which this stage needs, is missing' in error
    error = error_of(capsys, 'reward', f'--workdir={tmp_path}/seeds', '--seeds=2')
    assert 'use --config configs/NAME.py, --workdir RUN and --seeds 5' in error
    assert not (tmp_path / 'seeds').exists()
