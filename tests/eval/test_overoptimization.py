"""The plot of proxy and gold: KL measured on samples, the page, the whole command."""

import json

import jax
import numpy as np
import pytest

from configs import common
from configs import overoptimization as experiment
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import best_of, overoptimization
from gptjax.eval.overoptimization import PAGE, RESULTS, overoptimize
from gptjax.eval.report import overoptimization_page
from gptjax.models import gpt
from gptjax.post import rollout
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.train import init_from
from gptjax.train.load_model import inference_mesh
from tests.post import starts

pytestmark = pytest.mark.usefixtures('one_device')


def figure(value):
    return dict(value=value, interval=[value - 0.1, value + 0.1])


def point(sqrt_kl, proxy, gold, **more):
    return dict(
        kl=sqrt_kl**2, sqrt_kl=sqrt_kl, proxy=figure(proxy), gold=figure(gold), **more
    )


FOUND = dict(
    points=[point(0.0, 0.0, 0.3, n=1), point(0.5, 0.4, 0.4, n=2)],
    policy=[
        point(0.0, 0.0, 0.3, step=0),
        point(1.0, 1.0, 0.5, step=40),
        point(2.0, 2.0, 0.2, step=80),
    ],
    problems=10,
    samples=2,
    judge='',
    bootstrap=dict(resamples=10, level=0.95, seed=0),
)


def test_page_says_where_gold_falls_while_the_proxy_rises(capsys):
    page = overoptimization_page.build_page('a & b', FOUND)
    assert '<title>a &amp; b' in page
    assert page.count('<svg') >= 2 and '√KL' in page
    assert 'Best of n: gold is highest, 0.400, at the last point, √KL 0.50.' in page
    assert (
        'PPO: gold is highest, 0.500, at √KL 1.00; at the last point, √KL 2.00, the '
        'proxy is 1.00 higher and gold is 0.200.'
    ) in page
    assert 'the verifier finds right' in page
    judged = overoptimization_page.build_page('a', {**FOUND, 'judge': 'runs/x < y'})
    assert 'mean score of x &lt; y, another reward model' in judged
    overoptimization_page.print_overoptimization(FOUND)
    text = capsys.readouterr().out
    assert '80' in text and '0.200 (0.100 to 0.300)' in text


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('over')
    starts.write_start(folder)
    return folder


def config_of(folder, **changes):
    """The smallest possible experiment on a file of sums."""
    config = experiment.get_config()
    config.start = common.start_section(str(folder / 'start'))
    config.task.path = str(folder / 'problems.jsonl')
    config.task.rewards = common.ConfigDict(dict(short=common.reward_part('shortness')))
    config.best_of.update(problems=4, samples=4, max_tokens=4, slots=8)
    config.overoptimization.replies = 2
    config.data.context = 32
    config.eval.resamples = 20
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_kl_is_the_mean_log_ratio_of_what_was_drawn(folder):
    config = init_from.inherit_config(config_of(folder), folder / 'kl')
    mesh = inference_mesh(config)
    experiment = best_of.make_experiment(config)
    prompt_format, problems = experiment.prompt_format, experiment.problems
    prompts = [prompt_format.prompt(problem.messages) for problem in problems]
    replies = [made_up(prompt_format, number) for number in range(len(prompts))]
    drawn = rollout.build_rollout(prompt_format, problems, prompts, replies)
    log_ratios = overoptimization._make_log_ratios(config, experiment, mesh)

    settings, same = experiment.trained.settings, experiment.trained.params
    same = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), same)
    np.testing.assert_array_equal(log_ratios(same, drawn), 0)
    other = gpt.init_params(settings, jax.random.key(1))
    expected = [
        np.sum(
            drawn.batch['weights'] * token_logprobs(settings, params, drawn.batch)[0],
            axis=1,
        )
        for params in (other, same)
    ]
    found = log_ratios(other, drawn)
    assert found.shape == (4,)
    # Rows are computed in a batch of another size.
    np.testing.assert_allclose(found, expected[0] - expected[1], atol=1e-4)


def made_up(prompt_format, number):
    from gptjax.infer.request import Reply, Token

    end = prompt_format.tokenizer.specials['<|end|>']
    tokens = tuple(Token(id, 0.0) for id in prompt_format.tokenizer.encode(str(number)))
    return Reply(str(number), tokens, None, 'stop', end, Token(end, 0.0))


def test_bad_input_has_one_clear_error(folder, tmp_path):
    config = config_of(folder, **{'best_of.judge': str(tmp_path / 'none')})
    with pytest.raises(UserError, match='best_of.judge=.*none is not a finished run'):
        overoptimize(config, tmp_path)
    storage.write_json(tmp_path / 'judge' / 'results.json', {})
    same = str(tmp_path / 'judge')
    changes = {'best_of.judge': same, 'overoptimization.proxy': same}
    with pytest.raises(UserError, match='best_of.judge=.* is the proxy itself'):
        overoptimize(config_of(folder, **changes), tmp_path)
    with pytest.raises(ValueError, match='name a reward model by'):
        experiment.get_config('more')


def by_characters(items, replies):
    """The number of characters, a reward that is rarely equal for two replies."""
    return [len(reply) for reply in replies]


@pytest.mark.slow
def test_one_command_makes_all_of_it(folder, tmp_path):
    """A random model whose longest replies are preferred; checks files, not results."""
    config = config_of(folder)
    function = 'tests.eval.test_overoptimization.by_characters'
    config.task.rewards = common.ConfigDict(dict(own=common.reward_part(function)))
    parts = config.parts
    parts.select.select.update(problems=60, replies=32, max_tokens=20, pairs=8)
    parts.select.select.by = 'reward'
    parts.select.select.noise = 0.0
    parts.reward.train.update(num_steps=2, batch_size=16, eval_every=2)
    parts.reward.optim.warmup_steps = 0
    parts.reward.eval.resamples = 20
    parts.ppo.policy.update(prompts=8, max_tokens=4, slots=8, epochs=1)
    parts.ppo.train.update(num_steps=2, batch_size=8, eval_every=2)
    parts.ppo.optim.warmup_steps = 0
    parts.ppo.checkpoint.every = 1
    workdir = tmp_path / 'run'
    config = init_from.inherit_config(config, workdir)
    found = overoptimize(config, workdir)
    assert [point['step'] for point in found['policy']] == [0, 1, 2]
    assert found['policy'][0]['gold'] == found['points'][0]['gold']
    assert storage.read_json(workdir / RESULTS) == json.loads(json.dumps(found))
    assert '√KL' in (workdir / PAGE).read_text()
    # Run again: every part exists, so the same samples give the same numbers.
    assert overoptimize(config, workdir) == found
