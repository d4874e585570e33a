"""The stage `reward`: layouts, resuming, what comes out, and what is refused."""

import json
import shutil
import signal
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
from gptjax.parallel.mesh import make_mesh
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


def make_config(**reward):
    config = helpers.config()
    config.optim.update(name='adamw', learning_rate=1e-2)
    config.reward = common.reward_section()
    config.reward.update(centring=0.1, margin=0.2, **reward)
    return config


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    shape = (GROUPS, GROUP)
    segments = np.ones((*shape, CONTEXT), np.int32)
    last = rng.integers(4, CONTEXT, shape).astype(np.int32)
    segments[np.arange(CONTEXT) > last[..., None]] = 0
    return dict(
        inputs=rng.integers(3, helpers.VOCAB, segments.shape).astype(np.int32),
        segments=segments,
        positions=np.broadcast_to(
            np.arange(CONTEXT, dtype=np.int32), segments.shape
        ).copy(),
        last=last,
        values=rng.integers(3, size=shape).astype(np.float32),
    )


def losses(sizes, accumulation=1, steps=2):
    """(loss, gradient norm) of some updates on a mesh, and the last weights."""
    config, mesh = make_config(), helpers.mesh_of(*sizes)
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
        found = []
        for number in range(steps):
            batch = put_on_mesh(make_batch(number), mesh, reward_model.WITHOUT_TOKENS)
            state, metrics = step(state, batch)
            found.append((float(metrics['loss']), float(metrics['grad_norm'])))
        for leaf, like in zip(
            jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    return found, jax.device_get(state.params[heads.REWARD_HEAD])


@pytest.fixture(scope='module')
def one_device():
    return losses((1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize('sizes', ((8, 1, 1, 1), (1, 2, 2, 2)), ids=str)
def test_other_meshes_equal_one_device(sizes, one_device):
    found, head = losses(sizes)
    # float32, summed in another order.
    np.testing.assert_allclose(found, one_device[0], rtol=2e-5)
    helpers.assert_trees_close(head, one_device[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_micro_batches_equal_the_whole(one_device):
    # Groups have different numbers of pairs: the sums are divided once, by all.
    found, _ = losses((1, 1, 1, 1), accumulation=4)
    np.testing.assert_allclose(found, one_device[0], rtol=2e-5)


def test_a_score_depends_on_neither_padding_nor_neighbours():
    model = helpers.model_settings()
    params = gpt.init_params(model, jax.random.key(0))
    params.update(heads.init_reward_head(model, jax.random.key(1)))
    batch = make_batch()
    whole = reward_model.compute_rewards(model, params, batch)
    last = int(batch['last'][1, 2])
    alone = {
        name: batch[name][1:2, 2:3, : last + 1]
        for name in ('inputs', 'segments', 'positions')
    }
    alone['last'] = batch['last'][1:2, 2:3]
    found = reward_model.compute_rewards(model, params, alone)
    np.testing.assert_allclose(found[0, 0], whole[1, 2], rtol=1e-5)
    # What stands after the last token is not seen.
    batch['inputs'][1, 2, last + 1 :] = 5
    again = reward_model.compute_rewards(model, params, batch)
    assert again[1, 2] == whole[1, 2]


@pytest.mark.parametrize(
    'change, message',
    (
        (('reward.loss', 'binary'), 'binary is for replied and continued'),
        (('train.batch_size', 12), 'train.batch_size=12 does not divide into groups'),
        (('train.num_steps', 0), 'train.num_steps=0'),
        (('optim.warmup_steps', 60), 'optim.warmup_steps=60'),
        (('data.context', 256), 'data.context=256 is longer'),
    ),
)
def test_wrong_fields(change, message):
    config = reward_config.get_config()
    config.data.context = 32
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.train.batch_size = 8 * 8
    reward.check_config(config)
    section, field = change[0].split('.')
    config[section][field] = change[1]
    with pytest.raises(UserError, match=message):
        reward.check_config(config)


def test_preferences_are_read_as_often_as_epochs_say():
    ratings_ = reward_config.get_config()
    assert (
        reward.with_steps(ratings_, ratings_.reward.epochs, 1586).train.num_steps == 60
    )
    mine = reward_config.get_config('mine.jsonl')
    mine.reward.epochs, mine.train.batch_size = 1.5, 64
    # 200 pairs are 400 conversations: 1.5 x 400 / 64
    found = reward.with_steps(mine, mine.reward.epochs, 400)
    assert (found.train.num_steps, found.optim.warmup_steps) == (10, 5)
    assert reward.with_steps(mine, mine.reward.epochs, 6400).optim.warmup_steps == 10


def test_regression_is_for_ratings():
    config = reward_config.get_config('mine.jsonl')
    assert config.reward.preferences == 'mine.jsonl'
    config.reward.loss = 'regression'
    config.data.context = 32
    with pytest.raises(UserError, match='not for preferences: use pairwise'):
        reward.check_config(config)


# ---- the whole stage


def write_preferences(path):
    """120 prompts; the better reply is kind. Words beside it are chance."""
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
    found = storage.read_json(workdir / 'results.json')
    assert found['target'] == 'preferences' and 'spearman' not in found
    figures = found['accuracy']['all']
    assert figures['reward model']['value'] > 0.9
    assert figures['bag of words']['value'] > 0.9  # a word tells it
    assert figures['length']['value'] < 0.8
    assert found['pairs']['all'] == found['conversations']['test'] // 2
    metrics = [json.loads(line) for line in open(workdir / 'metrics.jsonl')]
    first = metrics[0]
    # A new head, and 16 pairs that it knows nothing of.
    assert first['pairs'] == 16 and abs(first['loss'] - np.log(2)) < 0.3
    assert metrics[-1]['split'] == 'validation' and metrics[-1]['accuracy'] > 0.9


@pytest.mark.slow
def test_a_loaded_reward_is_centred(finished):
    workdir = finished[2]
    config = run_dir.read_config(workdir)
    assert config.chat.template == 'text' and config.data.context == 64
    section = common.base().mesh
    section.data = 1
    mesh = make_mesh(section, jax.devices()[:1])
    rewards = reward_model.load_reward_function(config, workdir, mesh)
    items = ratings.read_ratings(workdir, 'train')
    found = rewards([item.messages for item in items])
    assert found.dtype == np.float32 and found.shape == (len(items),)
    assert abs(found.mean()) < 1e-4
    assert np.mean(found[::2] > found[1::2]) > 0.9
    # One alone, or many: a reward is of the conversation.
    np.testing.assert_allclose(rewards([items[5].messages]), found[5:6], atol=1e-5)
    assert rewards([]).shape == (0,)
    # And what it scores is the end of what was said, by the chat template.
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    long = [dict(role='user', content='so ' * 200), *items[0].messages]
    assert encode_end(long, tokenizer, 'text', 64).dropped == 1
    np.testing.assert_allclose(rewards([long]), found[:1], atol=1e-5)


@pytest.mark.slow
def test_the_same_command_finds_nothing_left_to_do(finished, capsys):
    before = (finished[2] / 'metrics.jsonl').read_bytes()
    assert runs.gptjax('reward', f'--workdir={finished[2]}') == 0
    assert (finished[2] / 'metrics.jsonl').read_bytes() == before
    assert 'reward model' in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_has_it(finished, capsys):
    assert runs.gptjax('report', f'--workdir={finished[2]}') == 0
    assert 'configs/select.py:reward=' in capsys.readouterr().out
    page = (finished[2] / 'report.html').read_text()
    assert '<h2>Reward model</h2>' in page and '<h2>Ratings</h2>' in page
    # Nothing that a reward model cannot be asked for is missing.
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
    with pytest.raises(UserError, match='no reward model there'):
        reward_model.load_reward_model(
            run_dir.read_config(trained_run), trained_run, mesh
        )


@pytest.mark.slow
def test_rows_of_padding_are_not_rewards(finished):
    tokenizer = Tokenizer.load(finished[2] / 'tokenizer' / 'tokenizer.model')
    encoded = [encode_end([dict(role='user', content='hi')], tokenizer, 'text', 64)]
    arrays = make_comparison_arrays(encoded, np.array([0, -1]), 64, tokenizer.pad_id)
    assert arrays['segments'].sum(axis=1).tolist() == [len(encoded[0].tokens), 0]


@pytest.mark.slow
def test_stopped_and_gone_on_is_bitwise_the_same(finished, tmp_path):
    preferences, start, done = finished
    words = lambda run: command(preferences, start, run, '--config.mesh.data=1')
    whole = tmp_path / 'whole'
    runs.finish(runs.start(*words(whole)))
    for number in (signal.SIGKILL, signal.SIGTERM):
        run = tmp_path / number.name
        process = runs.start(*words(run))
        test_resume.wait_until(process, lambda run=run: test_resume.lines_of(run) >= 12)
        process.send_signal(number)
        process.communicate()
        output, _ = runs.finish(runs.start(*words(run)))
        assert 'resuming from the checkpoint of step' in output
        assert runs.records(run) == runs.records(whole)
        assert storage.read_json(run / 'results.json') == storage.read_json(
            whole / 'results.json'
        )


# ---- a critic that begins as it


@pytest.fixture(scope='module')
def of_turns(finished, tmp_path_factory):
    """A reward model of chats as a policy reads them."""
    preferences, start, _ = finished
    workdir = tmp_path_factory.mktemp('of_turns') / 'run'
    words = command(preferences, start, workdir, '--config.chat.template=turns')
    assert runs.gptjax(*words) == 0
    return workdir


def ppo_config(reward_run, start_run, critic='network'):
    config = common.base()
    config.policy = common.policy_section()
    config.ppo = common.ppo_section()
    config.ppo.update(critic=critic, critic_run=str(reward_run))
    config.start = common.start_section(str(start_run))
    return config


@pytest.mark.slow
def test_a_critic_that_begins_as_it_values_the_last_token_at_the_reward(
    finished, of_turns
):
    start, workdir = finished[1], of_turns
    mesh, config = helpers.mesh_of(), run_dir.read_config(workdir)
    trained = load_model(run_dir.read_config(start), start, mesh)
    found = ppo.load_critic(str(workdir), 'turns', trained, mesh)
    params = heads.init_critic(trained.settings, 'network', trained.params, found)
    helpers.assert_trees_close(
        heads.without_critic(params), trained.params, rtol=0, atol=0
    )

    items = [item.messages for item in ratings.read_ratings(workdir, 'train')[:6]]
    encoded = [encode_end(i, trained.tokenizer, 'turns', 64) for i in items]
    arrays = make_comparison_arrays(encoded, np.arange(6), 64, trained.tokenizer.pad_id)
    hidden = gpt.bind(trained.settings, trained.params).hidden(
        *(arrays[name] for name in reward_model.TOKEN_ARRAYS)
    )
    values_BT = heads.compute_values(trained.settings, params, hidden, arrays)
    last_B = np.array([len(its.tokens) - 1 for its in encoded])
    rewards = reward_model.load_reward_function(config, workdir, mesh)(items)
    np.testing.assert_allclose(values_BT[np.arange(6), last_B], rewards, atol=1e-5)
    assert np.ptp(rewards) > 0.1


@pytest.mark.slow
def test_ppo_with_such_a_critic(finished, of_turns, tmp_path):
    start, workdir = finished[1], of_turns
    problems = tmp_path / 'problems.jsonl'
    lines = [dict(prompt=f'{n} + 1 =', answer=str(n + 1)) for n in range(60)]
    problems.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    words = (
        *('ppo', f'--config=configs/ppo.py:reward={workdir}'),
        *(f'--config.start.run={start}', f'--config.task.path={problems}'),
        *('--config.policy.prompts=8', '--config.policy.max_tokens=4'),
        *('--config.train.batch_size=8', '--config.train.num_steps=2'),
        *('--config.task.validation=2', '--config.optim.warmup_steps=0'),
        '--config.ppo.critic=network',
    )
    zero, begun = tmp_path / 'zero', tmp_path / 'begun'
    assert runs.gptjax(*words, f'--workdir={zero}') == 0
    words = (*words, f'--config.ppo.critic_run={workdir}')
    assert runs.gptjax(*words, f'--workdir={begun}') == 0
    first = lambda run: read_metrics(run / 'metrics.jsonl')[1]
    assert first(zero)['value'] == 0 != first(begun)['value']
    # The same replies were drawn: of the policy nothing is another.
    assert first(zero)['reward'] == first(begun)['reward']


@pytest.mark.slow
def test_a_critic_that_cannot_begin_so(finished, of_turns, trained_run, tmp_path):
    workdir, mesh = str(of_turns), helpers.mesh_of()
    with pytest.raises(UserError, match='critic_run=.* does nothing where ppo.critic='):
        ppo.check_config(ppo_config(workdir, trained_run, critic='head'))
    with pytest.raises(UserError, match='^ppo.critic_run=.*: is no finished run'):
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
