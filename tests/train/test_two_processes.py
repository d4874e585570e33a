"""Two processes train as one: the same data, losses and files."""

import re

import pytest

from tests import runs
from tests.post import starts
from tests.train.test_resume import lines_of, policy, records, wait_until

MESH = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')
WORDS = (
    'pretrain',
    '--config=configs/tiny.py',
    '--config.train.num_steps=12',
    '--config.train.eval_every=6',
    '--config.train.eval_batches=2',
    '--config.checkpoint.every=6',
    *MESH,
)

# In the second process the newest checkpoint seems to be damaged.
DAMAGED = """
from gptjax.train.checkpoint import Checkpoints, Damaged
read = Checkpoints._read_state
def damaged(self, step, *words):
    state = read(self, step, *words)
    if jax.process_index() == 1 and step == self.steps()[-1]:
        raise Damaged('the shard of this process')
    return state
Checkpoints._read_state = damaged
"""


def words_of(workdir, *more):
    return (*WORDS, f'--workdir={workdir}', *more)


@pytest.mark.slow
def test_two_processes_are_one_run(prepared_run, tmp_path):
    alone = runs.copy(prepared_run, tmp_path / 'alone')
    runs.finish(runs.start(*WORDS, f'--workdir={alone}', devices=8))
    expected = runs.records(alone)

    workdir = tmp_path / 'together'  # without data
    first, second = runs.start_cluster(words_of(workdir))
    said = runs.finish(first)[0], runs.finish(second)[0]
    assert 'documents: ' in said[0] and 'finished at step 12' in said[0]
    # The threads of Gloo print too and may split these lines.
    for ours in ('documents: ', 'tokens: ', 'parameters', 'finished'):
        assert ours not in said[1]
    found = runs.records(workdir)
    assert [(r['step'], r['split']) for r in found] == [
        (r['step'], r['split']) for r in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        # Measured: 8e-8, as the order of float32 sums differs.
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-6)
    assert not [*workdir.glob('.*')]
    # One process opens the finished run of two processes.
    output, _ = runs.finish(runs.start(*WORDS, f'--workdir={workdir}', devices=8))
    assert 'finished at step 12' in output


@pytest.mark.slow
def test_two_processes_train_a_policy_as_one(tmp_path):
    starts.write_start(tmp_path)
    words = lambda name: (*policy('ppo', tmp_path, tmp_path / name), *MESH)
    runs.finish(runs.start(*words('alone'), devices=8))
    for process in runs.start_cluster(words('together')):
        runs.finish(process)
    both = records(tmp_path / 'together'), records(tmp_path / 'alone')
    for together, alone in zip(*both, strict=True):
        assert together.pop('split') == alone.pop('split')
        # The order of float32 sums differs; the replies are the same.
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_signal_or_a_damaged_shard_of_one_process_is_seen_by_both(
    prepared_run, tmp_path
):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    more = ('train.num_steps=30', 'train.eval_every=30', 'checkpoint.every=10')
    words = words_of(workdir, *(f'--config.{field}' for field in more))
    words += ('--config.mesh.tensor=1',)
    processes = runs.start_cluster(words, devices=2)
    wait_until(processes[0], lambda: lines_of(workdir) >= 11)
    processes[1].terminate()  # only this one
    said = [runs.finish(process, 75)[0] for process in processes][0]
    stopped = int(re.search(r'saved at step (\d+)', said)[1])
    assert 10 < stopped < 30

    first, second = runs.start_cluster(words, before=DAMAGED, devices=2)
    said = runs.finish(first)[0]
    runs.finish(second)
    assert f'{stopped:08d} is damaged: in another process' in said
    before = (stopped - 1) // 10 * 10
    assert f'resuming from the checkpoint of step {before}' in said
    assert (workdir / 'checkpoints' / f'damaged-{stopped}').is_dir()
    steps = [r['step'] for r in runs.records(workdir) if r['split'] == 'train']
    assert steps == list(range(1, 31))


@pytest.mark.slow
def test_all_processes_refuse_what_the_first_refuses(tmp_path):
    missing = (
        '--config.data.sources.chitchat.kind=text',
        '--config.data.sources.chitchat.path=/nowhere',
    )
    for process in runs.start_cluster(words_of(tmp_path / 'run', *missing)):
        assert 'no such file' in runs.finish(process, code=2)[1]


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared(tmp_path):
    for process in runs.start_cluster(
        words_of(tmp_path / 'a'), words_of(tmp_path / 'b')
    ):
        assert 'a folder that all of them share' in runs.finish(process, code=2)[1]
