"""Two processes train as one: the stages after pretraining, and rewards.

All losses of a supervised run are compared. In reinforcement learning, the tokens of
the first rollout are equal, and the first update is equal up to the rounding of
float32. Rounding may change later replies, so later rewards are compared with those of
other seeds.
"""

import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from configs import common
from gptjax.core import storage
from gptjax.data.documents import build_documents
from gptjax.data.packed_documents import build_packed_documents
from tests import runs
from tests.post import starts, test_dpo, test_reward
from tests.train import test_resume, test_sft

LORA = '--config.lora.rank=2'
SHORT = (
    *('--config.optim.warmup_steps=0', '--config.train.num_steps=2'),
    *('--config.train.batch_size=16', '--config.train.eval_every=1'),
)
POLICY = (
    *SHORT,
    *('--config.task.validation=4', '--config.policy.slots=8'),
    *('--config.policy.prompts=4', '--config.policy.replies=4'),
    '--config.policy.epochs=1',
)
PART = '--config.task.rewards.correct'
REWARDS = f'{PART}.function=tests.post.rewards_by_process'
FUNCTION = f'{REWARDS}.another_in_each'
# Each process saves its first rollout, and how many tokens its engines drew for it.
RECORD = """
import numpy as np
from pathlib import Path
from gptjax.post import policy_gradient
collect = policy_gradient.collect_experience
def recorded(config, environment, complete, *arguments):
    engines = complete.__self__._engines
    count = lambda: sum(engine.stats().reply_tokens for engine in engines)
    before = count()
    batch, *others = collect(config, environment, complete, *arguments)
    if arguments[-1] == 0:
        [folder] = [w.split('=')[1] for w in argv if w.startswith('--workdir=')]
        path = Path(folder) / f'rollout-{jax.process_index()}.npz'
        np.savez(path, drawn=count() - before, **batch)
    return batch, *others
policy_gradient.collect_experience = recorded
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A start run, a reward model, and files of data."""
    folder = tmp_path_factory.mktemp('cluster')
    starts.write_start(folder)
    starts.write_reward(folder)
    test_sft.chat_file(folder)
    test_reward.write_preferences(folder / 'preferences.jsonl')
    pairs = [
        test_dpo.pair(f'{n} + {n} =', str(2 * n), 'I do not know') for n in range(40)
    ]
    test_dpo.write_pairs(folder / 'pairs.jsonl', pairs)
    write_text(folder)
    return folder


def write_text(folder):
    """RUN/text: packed text with the tokenizer of RUN/start."""
    text, config = folder / 'text', starts.config(folder, 'ppo')
    sums = [dict(text=f'{n} + {n} = {2 * n}') for n in range(100)]
    storage.write_text(folder / 'sums.jsonl', '\n'.join(map(json.dumps, sums)))
    config.data.sources = dict(sums=common.source('jsonl', str(folder / 'sums.jsonl')))
    config.data.update(clean=(), validation_fraction=0.2)
    shutil.copytree(folder / 'start' / 'tokenizer', text / 'tokenizer')
    build_documents(config, text)
    build_packed_documents(config, text)


def run_both(words, tmp_path):
    """The run directories of one process with one device, and of two such processes."""
    both, processes = [tmp_path / 'alone', tmp_path / 'together'], []
    for count, workdir in enumerate(both, 1):
        processes += runs.start_cluster(
            (*words, f'--workdir={workdir}'),
            before=RECORD,
            devices=1,
            count=count,
        )
    try:
        for process in processes:
            runs.finish(process)
    finally:
        for process in processes:
            process.kill()  # a process that waits for a failed one
    return both


SUPERVISED = {
    'sft': ('sft', 'sft.py:chat={}/mine.jsonl', '--config.sft.epochs=0'),
    'sft_lora': ('sft', 'sft.py:chat={}/mine.jsonl', '--config.sft.epochs=0', LORA),
    'reward': (
        *('reward', 'reward.py:{}/preferences.jsonl', '--config.reward.epochs=0'),
        '--config.eval.resamples=50',
    ),
    **{
        loss: (
            *('dpo', f'dpo.py:{loss}', '--config.preference.path={}/pairs.jsonl'),
            '--config.preference.epochs=0',
        )
        for loss in ('dpo', 'kto')
    },
}


def words_for(name, folder):
    """The words of a stage in `SUPERVISED` or `REINFORCEMENT`."""
    if name == 'pretrain':
        return ('pretrain', '--config=configs/tiny.py')
    if name in REINFORCEMENT:
        stage, variant, *more = (word.format(folder) for word in REINFORCEMENT[name])
        return policy_words(stage, variant, folder, *more)
    stage, config, *more = (word.format(folder) for word in SUPERVISED[name])
    start = f'--config.start.run={folder / "start"}'
    return (stage, f'--config=configs/{config}', start, *SHORT, *more)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'dpo',
        *(pytest.param(n, marks=pytest.mark.long) for n in SUPERVISED if n != 'dpo'),
    ],
)
def test_supervised_stages(name, folder, tmp_path):
    words = words_for(name, folder)
    alone, together = map(test_resume.records, run_both(words, tmp_path))
    assert [line['split'] for line in together] == ['train', 'validation'] * 2
    for line, expected in zip(together, alone, strict=True):
        assert line.pop('split') == expected.pop('split')
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)


def policy_words(stage, variant, folder, *more):
    start = f'--config.start.run={folder / "start"}'
    problems = f'--config.task.path={folder / "problems.jsonl"}'
    config = f'--config=configs/{stage}.py{variant}'
    return (stage, config, start, problems, *POLICY, *more)


REINFORCEMENT = {
    'grpo_function': ('grpo', '', FUNCTION),
    'ppo_model': (
        *('ppo', '', f'{PART}.function=model', f'{PART}.run={{}}/reward'),
        *('--config.ppo.critic=network', '--config.ppo.critic_run={}/reward'),
    ),
    # No reply is right, so only the penalty for truncated replies changes the policy.
    'ppo_verifier': ('ppo', '', '--config.policy.missing_eos_penalty=1.0'),
    'ppo_lora': ('ppo', '', FUNCTION, LORA),
    'ppo_ptx': (
        *('ppo', '', FUNCTION, '--config.ppo.ptx=1.0', '--config.ppo.ptx_rows=4'),
        '--config.ppo.ptx_run={}/text',
    ),
    'grpo_model': ('grpo', '', f'{PART}.function=model', f'{PART}.run={{}}/reward'),
    **{
        name: ('grpo', f':{name}', FUNCTION)
        for name in ('dr_grpo', 'dapo', 'gspo', 'rloo', 'reinforce')
    },
}
OFTEN = ('grpo_function', 'ppo_model')


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        *OFTEN,
        *(
            pytest.param(n, marks=pytest.mark.long)
            for n in REINFORCEMENT
            if n not in OFTEN
        ),
    ],
)
def test_reinforcement_learning(name, folder, tmp_path):
    words = words_for(name, folder)
    alone, together = run_both(words, tmp_path)
    expected = dict(np.load(alone / 'rollout-0.npz'))
    rollouts = [dict(np.load(together / f'rollout-{i}.npz')) for i in range(2)]
    drawn = [rollout.pop('drawn') for rollout in rollouts]
    assert sum(drawn) == expected.pop('drawn') and min(drawn) > 0
    for rollout in rollouts:
        for tokens in ('inputs', 'targets', 'weights'):
            np.testing.assert_array_equal(rollout[tokens], expected[tokens])
        # The log-probabilities are computed on another mesh; the rewards are equal.
        for array in rollout.keys():
            np.testing.assert_allclose(rollout[array], expected[array], 1e-5, 1e-6)
    assert np.any(expected['advantages'])

    lines = [test_resume.records(workdir) for workdir in (together, alone)]
    for line, expected in zip(*(run[:2] for run in lines), strict=True):
        assert line.pop('split') == expected.pop('split')
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(lines[0]) == len(lines[1])


LEARNING = (
    f'{REWARDS}.share_of_ascii',
    *('--config.policy.prompts=8', '--config.policy.replies=8'),
    *('--config.train.batch_size=64', '--config.train.num_steps=40'),
    *('--config.train.eval_every=40', '--config.policy.slots=16'),
    *('--config.optim.learning_rate=1e-2', '--config.optim.matrix_learning_rate=1e-1'),
)


@pytest.mark.slow
@pytest.mark.long
def test_later_rewards_lie_within_the_interval_over_seeds(folder, tmp_path):
    """40 rollouts raise the reward from 0.6 to 0.8, on two processes as on one."""

    def train(name, seed, count):
        """The mean rewards of the first 5 and the last 20 rollouts."""
        workdir = tmp_path / name
        words = policy_words('grpo', '', folder, *LEARNING, f'--config.seed={seed}')
        words = (*words, f'--workdir={workdir}')
        for process in runs.start_cluster(words, devices=1, count=count):
            runs.finish(process)
        lines = test_resume.records(workdir)
        rewards = [line['reward'] for line in lines if line['split'] == 'train']
        assert len(rewards) == 40
        return np.mean(rewards[:5]), np.mean(rewards[20:])

    first, last = np.transpose([train(f'{seed}', seed, count=1) for seed in range(5)])
    # A sixth run lies within this half of the interval in 99 of 100 cases.
    half = stats.t.ppf(0.995, df=4) * np.std(last, ddof=1) * np.sqrt(1 + 1 / 5)
    assert np.all(last - first > 2 * half)  # all have learned, clearly
    _, together = train('together', seed=0, count=2)
    assert together == pytest.approx(np.mean(last), abs=half)


INTERRUPTED = (
    'pretrain',
    'sft',
    'reward',
    'dpo',
    'kto',
    'ppo_model',
    'ppo_ptx',
    'dapo',
)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['grpo_function', *(pytest.param(n, marks=pytest.mark.long) for n in INTERRUPTED)],
)
def test_a_signal_to_one_process_and_a_kill(name, folder, tmp_path, request):
    """With 4 updates per rollout: a checkpoint is saved between rollouts."""
    steps = 160 if name in REINFORCEMENT else 400
    changes = dict(batch_size=4, num_steps=steps, eval_every=80, eval_batches=2)
    words = (
        *words_for(name, folder),
        *(f'--config.train.{field}={value}' for field, value in changes.items()),
        '--config.checkpoint.every=40',
    )
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    if name == 'pretrain':
        for copy in (whole, workdir):
            runs.copy(request.getfixturevalue('prepared_run'), copy)
    start = lambda run: runs.start_cluster((*words, f'--workdir={run}'), devices=1)
    for process in start(whole):
        runs.finish(process)

    processes = start(workdir)
    test_resume.wait_until(processes[0], lambda: test_resume.lines_of(workdir) >= 3)
    processes[1].terminate()  # only this one
    output = [runs.finish(process, 75)[0] for process in processes][0]
    stopped = int(re.search(r'saved at step (\d+)', output)[1])
    assert 3 <= stopped < steps
    assert name not in REINFORCEMENT or stopped % 4 == 0
    assert (workdir / 'checkpoints' / f'{stopped:08d}').is_dir()

    lines, processes = test_resume.lines_of(workdir), start(workdir)
    test_resume.wait_until(
        processes[0], lambda: test_resume.lines_of(workdir) >= lines + 2
    )
    for process in processes:
        process.kill()
        process.communicate()
    for process in start(workdir):
        runs.finish(process)
    assert test_resume.records(workdir) == test_resume.records(whole)


@pytest.mark.slow
def test_a_reward_that_fails_on_the_first_process_ends_both(folder, tmp_path):
    rewards = f'{REWARDS}.fails_later'
    words = policy_words('grpo', '', folder, f'--workdir={tmp_path / "run"}', rewards)
    for process in runs.start_cluster(words, devices=1):
        assert "raised KeyError: 'no such judge'" in runs.finish(process, code=2)[1]
