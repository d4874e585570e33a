"""A stage that is killed and started again is bitwise the one that was left alone."""

import pytest

from gptjax.train.metrics import read_metrics
from tests import runs
from tests.post import starts
from tests.train.test_resume import lines_of, wait_until


def command(folder, stage, workdir):
    return (
        *(stage, f'--config=configs/{stage}.py', '--workdir', workdir),
        f'--config.start.run={folder / "start"}',
        f'--config.task.path={folder / "problems.jsonl"}',
        '--config.task.rewards.correct.function=shortness',
        *('--config.task.validation=4', '--config.policy.slots=8'),
        *('--config.policy.prompts=4', '--config.policy.replies=4'),
        '--config.policy.epochs=1',
        *('--config.train.batch_size=8', '--config.train.num_steps=16'),
        *('--config.train.eval_every=8', '--config.checkpoint.every=4'),
        '--config.policy.kl_reward=0.1',
        '--config.policy.kl_horizon=1000',
        '--config.policy.reward_running_scale=True',
    )


def records(workdir):
    return [
        {name: value for name, value in record.items() if 'seconds' not in name}
        for record in read_metrics(workdir / 'metrics.jsonl')
    ]


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['grpo', 'ppo'])
def test_killed_anywhere(tmp_path, stage):
    starts.write_start(tmp_path)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    runs.finish(runs.start(*command(tmp_path, stage, whole)))
    for lines in (3, 7) if stage == 'grpo' else (7,):
        process = runs.start(*command(tmp_path, stage, killed))
        wait_until(process, lambda lines=lines: lines_of(killed) >= lines)
        process.kill()
        process.communicate()
    output, _ = runs.finish(runs.start(*command(tmp_path, stage, killed)))
    assert 'resuming from the checkpoint' in output
    assert records(killed) == records(whole)
    assert [r['step'] for r in records(whole) if r['split'] == 'train'][-1] == 16


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    starts.write_start(tmp_path)
    workdir = tmp_path / 'run'
    process = runs.start(*command(tmp_path, 'grpo', workdir))
    wait_until(process, lambda: lines_of(workdir) >= 3)
    process.terminate()
    output, _ = runs.finish(process, 75)
    assert 'the same command goes on from there' in output
    output, _ = runs.finish(runs.start(*command(tmp_path, 'grpo', workdir)))
    assert 'resuming from the checkpoint' in output and 'finished at step 16' in output


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    starts.write_start(tmp_path)
    mesh = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')
    words = lambda name: (*command(tmp_path, 'ppo', tmp_path / name), *mesh)
    runs.finish(runs.start(*words('alone'), devices=8))
    for process in runs.start_two(words('together')):
        runs.finish(process)
    alone, together = records(tmp_path / 'alone'), records(tmp_path / 'together')
    assert len(alone) == len(together)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.pop('split') == theirs.pop('split')
        # Sums in another order; the replies are the same.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
