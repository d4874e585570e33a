"""Runs of PPO and GRPO: which parameters change, metrics, resuming and meshes."""

import contextlib
import math
import signal
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from configs import common
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.infer.request import Reply, Token
from gptjax.parallel.mesh import make_mesh
from gptjax.post import grpo, policy_gradient, ppo
from gptjax.post.experience import Environment
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.rollout import make_sampler
from gptjax.train import init_from, loop
from gptjax.train.load_model import load_model
from gptjax.train.metrics import read_metrics
from tests import helpers
from tests.post import starts

STAGES = dict(grpo=grpo.grpo, ppo=ppo.ppo)
SHARED = {
    *('reward', 'kl', 'entropy', 'clip_fraction', 'ratio', 'advantage', 'approx_kl'),
    *('response_length', 'truncation_rate', 'step_seconds', 'learning_rate'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('policy')
    starts.write_start(folder)
    return folder


def train(folder, name, section, change=lambda config: None, **more):
    """(summary, RUN) of a stage."""
    config = starts.config(folder, section, **more)
    change(config)
    workdir = folder / name
    config = init_from.inherit_config(config, workdir)
    run_dir.check_run(config, workdir)
    run_dir.write_config(config, workdir)
    size = math.prod(config.mesh.values())
    few = lambda section: make_mesh(section, jax.devices()[:size])
    with (
        mock.patch.object(policy_gradient, 'make_mesh', few),
        mock.patch.object(policy_gradient, 'make_sampler', shared_sampler),
    ):
        return STAGES[section](config, workdir), workdir


SAMPLERS = []


def shared_sampler(trained, section, context):
    """One engine for all runs: compiling it takes longer than the tests."""
    if not SAMPLERS:
        SAMPLERS.append(make_sampler(trained, section, context))
        SAMPLERS[0].close = lambda: None
    SAMPLERS[0].update_weights(trained.params, 'first')
    return SAMPLERS[0]


def params_of(workdir, step=None):
    trained = load_model(run_dir.read_config(workdir), workdir, helpers.mesh_of(), step)
    return jax.tree.map(np.asarray, trained.params)


def lines(workdir, split='train'):
    return [r for r in read_metrics(workdir / 'metrics.jsonl') if r['split'] == split]


def samples_of(workdir):
    paths = sorted((workdir / policy_gradient.SAMPLES).iterdir())
    return {int(path.stem): path.read_bytes() for path in paths}


def without_clock(records):
    return [
        {name: value for name, value in record.items() if 'seconds' not in name}
        for record in records
    ]


def interrupted_after(rollouts):
    """Replaces `interruption`: a signal arrives after this number of rollouts."""

    @contextlib.contextmanager
    def interruption():
        yield lambda updates: signal.SIGTERM if updates >= rollouts else None

    return interruption


SEEN = []  # (trained parameters, reference parameters) of each rollout of `grpo_run`


@pytest.fixture(scope='module')
def grpo_run(folder):
    collect = policy_gradient.collect_experience

    def watched(*args):
        both = args[3].args  # the arguments of the partial `score_tokens`
        SEEN.append(jax.tree.map(lambda x: np.array(x, copy=True), both))
        return collect(*args)

    with mock.patch.object(policy_gradient, 'collect_experience', watched):
        return train(folder, 'grpo', 'grpo', kl_loss=0.1)


def ppo_config(config):
    config.train.update(batch_size=8, num_steps=8)
    config.checkpoint.keep = 4
    config.ppo.warm_up = 1
    config.optim.weight_decay = 0.1  # it would change a policy without gradients
    config.policy.update(kl_reward=0.1, kl_horizon=100, reward_running_scale=True)


@pytest.fixture(scope='module')
def ppo_run(folder):
    return train(folder, 'ppo', 'ppo', ppo_config)


@pytest.mark.slow
@pytest.mark.parametrize('run', ['grpo_run', 'ppo_run'])
def test_the_first_ratio_is_one_and_the_usual_metrics_are_there(run, request):
    summary, workdir = request.getfixturevalue(run)
    assert summary['reason'] == 'finished'
    records = lines(workdir)
    assert len(records) == summary['rollouts'] == 4
    wanted = SHARED
    if run == 'ppo_run':
        wanted = wanted | {'value_loss', 'explained_variance'}
    for record in records:
        assert wanted <= record.keys()
        # The old log-probabilities are computed by the trainer before the first update.
        assert record['first_ratio'] == pytest.approx(1, abs=1e-6)
        assert record['sampler_gap'] < 2e-5  # rounding of float32
        assert record['skipped'] == record['empty_rollouts'] == 0
        assert all(value is not None for value in record.values())
    validations = lines(workdir, 'validation')
    last = records[-1]['step']
    assert [r['step'] for r in validations] == list(range(0, last + 1, 2))
    assert {'accuracy', 'reward', 'loss'} <= validations[-1].keys()


def test_a_validation_keeps_its_first_replies():
    problems = [
        Problem(f'p{n}', (dict(role='user', content=f'{n} ='),), str(n))
        for n in range(40)
    ]

    def complete(prompts, parameters):
        return [
            Reply(
                str(n), (Token(9),), None, *('stop', None, None if n % 2 else Token(5))
            )
            for n in range(len(prompts))
        ]

    environment = Environment(
        SimpleNamespace(
            tokenizer=SimpleNamespace(specials={'<|end|>': 5}, chat_template=None),
            template='turns',
            max_tokens=2,
            temperature=1.0,
            prompt=lambda messages: [1],
        ),
        SimpleNamespace(
            validation=lambda n: problems[:n],
            score=lambda problem, reply: float(reply == problem.answer),
        ),
        lambda problems, replies: [n / 4 - r.truncated for n, r in enumerate(replies)],
    )
    config = SimpleNamespace(task=SimpleNamespace(validation=30), seed=0)
    metrics, samples = policy_gradient.evaluate_policy(
        config, environment, SimpleNamespace(complete=complete)
    )
    assert metrics['accuracy'] == 1 and metrics['truncation_rate'] == 0.5
    assert len(samples) == policy_gradient.NUM_SAMPLES == 16
    assert samples[3] == dict(
        id='p3',
        prompt=[dict(role='user', content='3 =')],
        **dict(answer='3', reply='3', reward=-0.25, tokens=1, truncated=True),
    )
    fourth = dict(reward=1.0, tokens=2, truncated=False)
    assert {name: samples[4][name] for name in fourth} == fourth


@pytest.mark.slow
def test_the_policy_changes_and_the_reference_does_not(folder, grpo_run, ppo_run):
    first = params_of(folder / 'start')
    for _, workdir in (grpo_run, ppo_run):
        last = params_of(workdir, max(r['step'] for r in lines(workdir)))
        changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, last)
        assert min(jax.tree.leaves(changes)) > 0
    assert len(SEEN) == 4
    for number, (params, reference) in enumerate(SEEN):
        helpers.assert_trees_close(reference, first)  # bitwise
        change = np.abs(params['head']['kernel'] - first['head']['kernel']).max()
        assert (change > 0) == (number > 0)


@pytest.mark.slow
def test_a_warm_up_trains_the_critic_alone(folder, ppo_run):
    # Two updates per rollout; the first rollout only trains the critic.
    _, workdir = ppo_run
    first = params_of(folder / 'start')
    helpers.assert_trees_close(params_of(workdir, 2), first)  # bitwise
    moved = params_of(workdir, 4)['head']['kernel'] - first['head']['kernel']
    assert np.abs(moved).max() > 0
    assert lines(workdir)[0]['explained_variance'] == 0
    assert lines(workdir)[1]['explained_variance'] != 0  # the critic was trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ('section', 'steps', 'rollouts'), [('grpo', 2, 2), ('ppo', 4, 2)]
)
def test_a_stopped_run_resumes_bitwise(
    folder, request, monkeypatch, section, steps, rollouts
):
    _, whole = request.getfixturevalue(f'{section}_run')
    config = run_dir.read_config(whole)

    def change(new):
        new.update(config)

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'interruption', interrupted_after(rollouts))
        summary, workdir = train(folder, f'{section}_stopped', section, change)
        assert (summary['reason'], summary['step']) == ('interrupted', steps)
    stale = workdir / policy_gradient.SAMPLES / '00000099.json'
    storage.write_json(stale, {})  # of a validation that the resumed run has yet to do
    summary, _ = train(folder, f'{section}_stopped', section, change)
    assert summary['reason'] == 'finished'
    assert samples_of(workdir) == samples_of(whole)
    assert [*samples_of(whole)] == [r['step'] for r in lines(whole, 'validation')]
    metrics = [
        without_clock(read_metrics(run / 'metrics.jsonl')) for run in (workdir, whole)
    ]
    assert metrics[0] == metrics[1]
    last = summary['step']
    helpers.assert_trees_close(params_of(workdir, last), params_of(whole, last))


@pytest.mark.slow
def test_a_run_does_not_resume_with_another_task_context_or_reference(
    folder, grpo_run, monkeypatch
):
    config = run_dir.read_config(grpo_run[1])

    def refuses(name):
        with pytest.raises(UserError, match=f'was made with other {name}'):
            train(folder, 'grpo', 'grpo', lambda new: new.update(config))

    path = folder / 'problems.jsonl'
    before = path.read_text()
    storage.write_text(path, before.replace('"0"', '"zero"'))
    try:
        refuses('problems')
    finally:
        storage.write_text(path, before)
    with monkeypatch.context() as patch:  # as if start.run had been trained further
        name = 'gptjax.train.load_model.model_fingerprint'
        patch.setattr(name, lambda trained: 'other')
        refuses('start')
    config.data.context = 24
    refuses('context .32 there, 24 here')


@pytest.mark.slow
def test_rollouts_with_equal_scores_are_counted_and_change_nothing(folder):
    def change(config):
        config.task.rewards = dict(right=common.reward_part('correct'))
        config.policy.missing_eos_penalty = 0.0  # else some scores differ

    summary, workdir = train(folder, 'empty', 'grpo', change, missing_eos_penalty=0.0)
    assert summary['empty_rollouts'] == 4
    helpers.assert_trees_close(params_of(workdir, 4), params_of(folder / 'start'))
    assert [r['empty_rollouts'] for r in lines(workdir)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [dict(fsdp=2, tensor=2), dict(data=2)], ids=str)
def test_every_mesh_makes_the_same_updates(folder, ppo_run, sizes, monkeypatch):
    def change(config):
        ppo_config(config)
        config.mesh.update(dict(data=1, fsdp=1, tensor=1), **sizes)

    monkeypatch.setattr(loop, 'interruption', interrupted_after(2))
    _, workdir = train(folder, f'mesh{sizes}', 'ppo', change)
    _, alone = ppo_run
    # The order of sums differs, and the first step of Adam divides by |gradient|.
    helpers.assert_trees_close(params_of(workdir, 4), params_of(alone, 4), atol=1e-4)
    for ours, theirs in zip(lines(workdir), lines(alone)[:2], strict=True):
        assert ours['reward'] == theirs['reward']
        assert ours['kl'] == pytest.approx(theirs['kl'], abs=1e-4)


def digits(problems, replies):
    return [sum(letter.isdigit() for letter in reply) / 6 for reply in replies]


@pytest.mark.slow
@pytest.mark.parametrize('section', ['grpo', 'ppo'])
def test_the_reward_rises(folder, section):
    def change(config):
        part = common.reward_part(f'{__name__}.digits')
        config.task.rewards = dict(digits=part)
        config.policy.missing_eos_penalty = 0.0
        config.optim.learning_rate = 3e-3
        config.train.update(num_steps=30, batch_size=64, eval_every=100)

    _, workdir = train(
        folder, f'{section}_rises', section, change, prompts=8, replies=8, slots=32
    )
    rewards = [record['reward'] for record in lines(workdir)]
    # 0.06 before training; GRPO reached 0.40 in 30 updates.
    assert np.mean(rewards[-3:]) > 3 * np.mean(rewards[:3])


@pytest.mark.slow
@pytest.mark.parametrize('section', ['grpo', 'ppo'])
def test_the_gap_to_the_sampler_does_not_depend_on_the_temperature(folder, section):
    change = lambda config: config.train.update(num_steps=1, eval_every=1)
    _, workdir = train(folder, f'{section}_hot', section, change, temperature=2.0)
    [record] = lines(workdir)
    assert record['sampler_gap'] < 2e-5  # rounding of float32


# ---- LoRA, a critic network, another dtype


@pytest.mark.slow
def test_lora_begins_at_the_reference_and_trains_only_adapters(folder):
    def change(config):
        config.lora = common.lora_section()
        config.lora.rank = 2
        config.train.num_steps = 2

    summary, workdir = train(folder, 'lora', 'ppo', change, kl_loss=0.1)
    assert summary['reason'] == 'finished'
    records = lines(workdir)
    assert records[0]['kl'] == 0  # B is initialised as 0
    assert records[0]['first_ratio'] == pytest.approx(1, abs=1e-6)
    first, last = params_of(folder / 'start'), params_of(workdir, 2)
    assert jax.tree.structure(first) == jax.tree.structure(last)
    np.testing.assert_array_equal(first['head']['kernel'], last['head']['kernel'])
    query = lambda params: params['layers']['attention']['query']
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), query(first), query(last))
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_a_critic_network_and_pretraining_text(folder, monkeypatch):
    seen = []

    def make_text_arrays(config, text):
        def text_arrays(number, part):
            seen.append(number)
            rows = helpers.packed_batch(number, batch=4)
            return dict(ptx=dict(rows, weights=rows['weights'] * 0.1))

        return text_arrays

    def change(config):
        config.train.num_steps = 2
        config.ppo.update(critic='network', ptx=0.5)

    text = SimpleNamespace(fingerprint='of the text')
    monkeypatch.setattr(ppo, 'open_text', lambda config: text)
    monkeypatch.setattr(ppo, 'make_text_arrays', make_text_arrays)
    _, workdir = train(folder, 'network', 'ppo', change)
    assert seen == [0, 1]
    assert all(record['ptx_loss'] > 0 for record in lines(workdir))
    first, last = params_of(folder / 'start'), params_of(workdir, 2)
    assert jax.tree.structure(first) == jax.tree.structure(last)
    text.fingerprint = 'of another text'
    with pytest.raises(UserError, match='was made with other text'):
        train(folder, 'network', 'ppo', change)


@pytest.mark.slow
def test_the_dtype_is_that_of_the_run_and_not_of_its_start(folder, monkeypatch):
    config = starts.config(folder, 'grpo')
    config = init_from.inherit_config(
        config, folder / 'other', {'model.dtype': 'bfloat16'}
    )
    make_algorithm = mock.Mock(wraps=grpo.make_algorithm)
    make_sampler = mock.Mock(side_effect=KeyboardInterrupt)
    few = lambda section: make_mesh(section, jax.devices()[:1])
    monkeypatch.setattr(policy_gradient, 'make_mesh', few)
    monkeypatch.setattr(policy_gradient, 'make_sampler', make_sampler)
    monkeypatch.setattr(grpo, 'make_algorithm', make_algorithm)
    with pytest.raises(KeyboardInterrupt):
        grpo.grpo(config, folder / 'other')
    for trained in (make_algorithm.call_args.args[1], make_sampler.call_args.args[0]):
        assert trained.settings.dtype == 'bfloat16'
