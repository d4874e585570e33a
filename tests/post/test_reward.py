"""The stage `reward`: meshes, resuming, results and errors."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from configs import common
from configs import reward as reward_config
from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import ratings
from gptjax.data.comparisons import encode_end, make_comparison_arrays
from gptjax.models import gpt, heads, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.parallel.sharding import put_on_mesh
from gptjax.post import ppo, reward, reward_model
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train.load_model import load_model
from gptjax.train.metrics import read_metrics
from gptjax.train.state import new_state
from gptjax.train.step import make_train_step
from tests import helpers, runs
from tests.train import test_resume

GROUPS, GROUP, CONTEXT = 8, 3, 32


# ---- computing


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    shape = (GROUPS, GROUP)
    last = rng.integers(4, CONTEXT, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), (*shape, CONTEXT))
    return dict(
        inputs=rng.integers(3, helpers.VOCAB, positions.shape).astype(np.int32),
        segments=(positions <= last[..., None]).astype(np.int32),
        positions=positions,
        last=last,
        values=rng.integers(3, size=shape).astype(np.float32),
    )


def train_steps(sizes=(), accumulation=1):
    """Two updates on a mesh: their (loss, gradient norm), and the head afterwards."""
    config, mesh = helpers.config(), helpers.mesh_of(*sizes)
    config.optim.update(name='adamw', learning_rate=1e-2)
    config.reward = common.reward_section()
    config.reward.update(centring=0.1, margin=0.2)
    model = settings.resolve(config.model, helpers.VOCAB)
    with jax.set_mesh(mesh):
        abstract = reward_model.abstract_reward_state(config, model, mesh)
        optimizer = make_optimizer(config, reward_model.reward_shapes(model)[0])
        params = jax.device_get(gpt.init_params(model, jax.random.key(0)))
        params.update(jax.device_get(heads.init_reward_head(model, jax.random.key(1))))
        state = jax.tree.map(
            lambda leaf, like: jax.device_put(np.asarray(leaf), like.sharding),
            new_state(params, optimizer),
            abstract,
        )
        loss_fn = reward.make_reward_loss(model, config.reward)
        step = make_train_step(loss_fn, optimizer, abstract, accumulation)
        metrics_of_steps = []
        for number in range(2):
            batch = put_on_mesh(make_batch(number), mesh, reward_model.WITHOUT_TOKENS)
            state, metrics = step(state, batch)
            metrics_of_steps.append([metrics['loss'], metrics['grad_norm']])
        for leaf, like in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    return jax.device_get((metrics_of_steps, state.params[heads.REWARD_HEAD]))


@pytest.fixture(scope='module')
def one_device():
    return train_steps()


@pytest.mark.slow
@pytest.mark.parametrize('sizes', ((8, 1, 1, 1), (1, 2, 2, 2)), ids=str)
def test_other_meshes_equal_one_device(sizes, one_device):
    metrics, head = train_steps(sizes)
    # The order of float32 sums differs.
    np.testing.assert_allclose(metrics, one_device[0], rtol=2e-5)
    helpers.assert_trees_close(head, one_device[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_micro_batches_equal_the_whole(one_device):
    # Groups have different numbers of pairs, so the total sum is divided once, by all.
    metrics, _ = train_steps(accumulation=4)
    np.testing.assert_allclose(metrics, one_device[0], rtol=2e-5)


def test_a_score_depends_on_neither_padding_nor_neighbours():
    model = helpers.model_settings()
    params = gpt.init_params(model, jax.random.key(0))
    params.update(heads.init_reward_head(model, jax.random.key(1)))
    batch = make_batch()
    whole = reward_model.compute_rewards(model, params, batch)
    last = int(batch['last'][1, 2])
    alone = {
        name: batch[name][1:2, 2:3, : last + 1] for name in reward_model.TOKEN_ARRAYS
    }
    alone['last'] = batch['last'][1:2, 2:3]
    rewards = reward_model.compute_rewards(model, params, alone)
    np.testing.assert_allclose(rewards[0, 0], whole[1, 2], rtol=1e-5)
    # Tokens after the last one have no effect.
    batch['inputs'][1, 2, last + 1 :] = 5
    again = reward_model.compute_rewards(model, params, batch)
    assert again[1, 2] == whole[1, 2]


@pytest.mark.parametrize(
    'variant, field, value, message',
    (
        ('', 'reward.loss', 'binary', 'binary is for replied and continued, not for'),
        ('', 'train.batch_size', 12, 'train.batch_size=12 is not divisible by 64'),
        ('', 'train.num_steps', 0, 'train.num_steps=0'),
        ('', 'optim.warmup_steps', 60, 'optim.warmup_steps=60'),
        ('', 'data.context', 256, 'data.context=256 is longer'),
        ('mine.jsonl', 'reward.loss', 'regression', 'not for preferences: use pair'),
    ),
)
def test_wrong_fields(variant, field, value, message):
    config = reward_config.get_config(variant)
    config.data.context = 32
    config.mesh.update(data=1, fsdp=-1)
    reward.check_config(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        reward.check_config(config)


# ---- the whole stage


def write_preferences(path):
    """Writes 120 prompts with pairs; one word decides which reply is better."""
    rng = np.random.default_rng(0)
    words = 'you we they see like have a day dog house again soon'.split()

    def reply(word):
        return ' '.join([*rng.choice(words, 3), word, *rng.choice(words, 2)])

    lines = [
        dict(
            prompt=[dict(role='user', content=f'question {number}?')],
            chosen=reply('thanks'),
            rejected=reply('never'),
        )
        for number in range(120)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def command(preferences, start, workdir, *more):
    return (
        'reward',
        f'--config=configs/reward.py:{preferences}',
        f'--workdir={workdir}',
        f'--config.start.run={start}',
        '--config.reward.epochs=0',
        '--config.train.num_steps=24',
        '--config.train.batch_size=32',
        '--config.train.eval_every=8',
        '--config.checkpoint.every=8',
        '--config.optim.learning_rate=0.003',
        '--config.eval.resamples=50',
        *more,
    )


@pytest.fixture(scope='module')
def finished(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('reward')
    words = write_preferences(folder / 'mine.jsonl'), trained_run, folder / 'run'
    assert runs.gptjax(*command(*words)) == 0
    return words


@pytest.mark.slow
def test_it_learns_what_is_preferred(finished):
    workdir = finished[2]
    results = storage.read_json(workdir / 'results.json')
    assert results['target'] == 'preferences' and 'spearman' not in results
    figures = results['accuracy']['all']
    assert figures['reward model']['value'] > 0.9
    assert figures['bag of words']['value'] > 0.9  # one word decides
    assert figures['length']['value'] < 0.8
    assert results['pairs']['all'] == results['conversations']['test'] // 2
    metrics = read_metrics(workdir / 'metrics.jsonl')
    # The head was not in the start run.
    assert metrics[0]['pairs'] == 16 and abs(metrics[0]['loss'] - np.log(2)) < 0.3
    assert metrics[-1]['split'] == 'validation' and metrics[-1]['accuracy'] > 0.9


@pytest.mark.slow
def test_a_loaded_reward_is_centred(finished):
    workdir = finished[2]
    config = run_dir.read_config(workdir)
    assert config.chat.template == 'text' and config.data.context == 64
    reward_of = reward_model.load_reward_function(config, workdir, helpers.mesh_of())
    conversations = [each.messages for each in ratings.read_ratings(workdir, 'train')]
    rewards = reward_of(conversations)
    assert rewards.dtype == np.float32 and rewards.shape == (len(conversations),)
    assert abs(rewards.mean()) < 1e-4
    assert np.mean(rewards[::2] > rewards[1::2]) > 0.9
    # A reward depends only on the conversation.
    np.testing.assert_allclose(reward_of(conversations[5:6]), rewards[5:6], atol=1e-5)
    assert reward_of([]).shape == (0,)
    # The first messages are dropped if the conversation is too long.
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    long = [dict(role='user', content='so ' * 200), *conversations[0]]
    assert encode_end(long, tokenizer, 'text', 64).dropped == 1
    np.testing.assert_allclose(reward_of([long]), rewards[:1], atol=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_reported(finished, capsys):
    workdir = finished[2]
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert runs.gptjax('reward', f'--workdir={workdir}') == 0
    assert (workdir / 'metrics.jsonl').read_bytes() == before
    assert 'reward model' in capsys.readouterr().out
    assert runs.gptjax('report', f'--workdir={workdir}') == 0
    assert 'configs/select.py:reward=' in capsys.readouterr().out
    page = (workdir / 'report.html').read_text()
    assert '<h2>Reward model</h2>' in page and '<h2>Ratings</h2>' in page
    # The report has no sections that do not fit a reward model.
    assert 'class="missing"' not in page and 'gptjax eval' not in page


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_preferences(finished, tmp_path):
    workdir = runs.copy(finished[2], tmp_path / 'run')
    config = run_dir.read_config(workdir)
    other = tmp_path / 'other.jsonl'
    other.write_text(finished[0].read_text().replace('thanks', 'thank you'))
    config.reward.preferences = str(other)
    shutil.rmtree(workdir / 'ratings')
    ratings.build_ratings(config, workdir)
    with pytest.raises(UserError, match='was made with other data'):
        reward.train_reward(config, workdir)


@pytest.mark.slow
def test_it_needs_a_finished_run(trained_run, finished, tmp_path):
    config = run_dir.read_config(finished[2])
    mesh = helpers.mesh_of()
    with pytest.raises(UserError, match='run the stage reward to its end'):
        reward_model.load_reward_function(config, tmp_path, mesh)
    shutil.copytree(finished[2], tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').write_bytes(b'')
    with pytest.raises(UserError, match='results.json is not there, or damaged: run'):
        reward_model.load_reward_function(config, tmp_path / 'run', mesh)
    with pytest.raises(UserError, match='is a reward model, .* and `report` shows it'):
        load_model(config, finished[2], mesh)
    with pytest.raises(UserError, match='no reward model there'):
        reward_model.load_reward_model(
            run_dir.read_config(trained_run), trained_run, mesh
        )


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(finished, tmp_path):
    preferences, start, _ = finished
    words = lambda run: command(preferences, start, run, '--config.mesh.data=1')
    whole, run = tmp_path / 'whole', tmp_path / 'killed'
    runs.finish(runs.start(*words(whole)))
    process = runs.start(*words(run))
    test_resume.wait_until(process, lambda: test_resume.lines_of(run) >= 12)
    process.kill()
    process.communicate()
    output, _ = runs.finish(runs.start(*words(run)))
    assert 'resuming from the checkpoint of step' in output
    assert runs.records(run) == runs.records(whole)
    results = [storage.read_json(path / 'results.json') for path in (run, whole)]
    assert results[0] == results[1]


# ---- PPO with a critic that is initialised from a reward model


@pytest.fixture(scope='module')
def with_turns(finished, tmp_path_factory):
    """A reward model with the chat template of policies."""
    preferences, start, _ = finished
    workdir = tmp_path_factory.mktemp('with_turns') / 'run'
    words = command(preferences, start, workdir, '--config.chat.template=turns')
    assert runs.gptjax(*words) == 0
    return workdir


@pytest.mark.slow
def test_the_critic_values_the_last_token_at_the_reward(finished, with_turns):
    start, mesh = finished[1], helpers.mesh_of()
    trained = load_model(run_dir.read_config(start), start, mesh)
    critic = ppo.load_critic(str(with_turns), 'turns', trained, mesh)
    params = heads.init_critic(trained.settings, 'network', trained.params, critic)
    helpers.assert_trees_close(heads.without_critic(params), trained.params)

    rated = ratings.read_ratings(with_turns, 'train')[:6]
    conversations = [each.messages for each in rated]
    encoded = [encode_end(c, trained.tokenizer, 'turns', 64) for c in conversations]
    arrays = make_comparison_arrays(encoded, np.arange(6), 64, trained.tokenizer.pad_id)
    hidden = gpt.bind(trained.settings, trained.params).hidden(
        *(arrays[name] for name in reward_model.TOKEN_ARRAYS)
    )
    values_BT = heads.compute_values(trained.settings, params, hidden, arrays)
    config = run_dir.read_config(with_turns)
    reward_of = reward_model.load_reward_function(config, with_turns, mesh)
    rewards = reward_of(conversations)
    last_values_B = values_BT[np.arange(6), arrays['last']]
    np.testing.assert_allclose(last_values_B, rewards, atol=1e-5)
    assert np.ptp(rewards) > 0.1


@pytest.mark.slow
def test_ppo_with_such_a_critic(finished, with_turns, tmp_path):
    problems = tmp_path / 'problems.jsonl'
    lines = [dict(prompt=f'{n} + 1 =', answer=str(n + 1)) for n in range(60)]
    problems.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    words = (
        *('ppo', f'--config=configs/ppo.py:reward={with_turns}'),
        *(f'--config.start.run={finished[1]}', f'--config.task.path={problems}'),
        *('--config.policy.prompts=8', '--config.policy.max_tokens=4'),
        *('--config.train.batch_size=8', '--config.train.num_steps=2'),
        *('--config.task.validation=2', '--config.optim.warmup_steps=0'),
        '--config.ppo.critic=network',
    )
    zero, loaded = tmp_path / 'zero', tmp_path / 'loaded'
    assert runs.gptjax(*words, f'--workdir={zero}') == 0
    words = (*words, f'--config.ppo.critic_run={with_turns}')
    assert runs.gptjax(*words, f'--workdir={loaded}') == 0
    first = lambda run: read_metrics(run / 'metrics.jsonl')[1]
    assert first(zero)['value'] == 0 != first(loaded)['value']
    # The policy is the same and generates the same replies.
    assert first(zero)['reward'] == first(loaded)['reward']


@pytest.mark.slow
def test_a_critic_that_does_not_fit(finished, with_turns, trained_run, tmp_path):
    workdir, mesh = str(with_turns), helpers.mesh_of()
    config = common.base()
    config.policy, config.ppo = common.policy_section(), common.ppo_section()
    config.ppo.update(critic='head', critic_run=workdir)
    config.start = common.start_section(str(trained_run))
    with pytest.raises(UserError, match='critic_run=.* does nothing where ppo.critic='):
        ppo.check_config(config)
    with pytest.raises(UserError, match='^ppo.critic_run=.* is not a finished run'):
        ppo.load_critic(str(tmp_path), 'turns', None, mesh)
    with pytest.raises(UserError, match='chat.template=text, and the policy has turns'):
        ppo.load_critic(str(finished[2]), 'turns', None, mesh)
    trained = load_model(run_dir.read_config(trained_run), trained_run, mesh)
    other = trained._replace(params=dict(trained.params, more=np.zeros(3)))
    with pytest.raises(UserError, match='critic_run=.* is a model of another shape'):
        ppo.load_critic(workdir, 'turns', other, mesh)
    other = trained._replace(tokenizer=mock.Mock(fingerprint='another'))
    with pytest.raises(UserError, match='critic_run=.* another tokenizer'):
        ppo.load_critic(workdir, 'turns', other, mesh)
