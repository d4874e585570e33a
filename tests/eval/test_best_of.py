"""Best-of-n: the estimator equals a mean over all subsets, the KL its definition."""

import itertools
import math

import numpy as np
import pytest

from configs import common
from gptjax.eval import best_of
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.train import init_from
from tests.post import starts

pytestmark = pytest.mark.usefixtures('one_device')
HOW = BootstrapSettings(resamples=50, level=0.95, seed=0)


def over_subsets(proxy_N, gold_N, n):
    """The mean over all subsets; tied replies share the choice."""
    proxies, golds = [], []
    for subset in itertools.combinations(range(len(proxy_N)), n):
        top = max(proxy_N[place] for place in subset)
        winners = [gold_N[place] for place in subset if proxy_N[place] == top]
        proxies.append(top)
        golds.append(np.mean(winners))
    return np.mean(proxies), np.mean(golds)


@pytest.mark.parametrize('n', (1, 2, 3, 4, 6))
def test_estimator_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    gold_N = rng.integers(2, size=6)
    equal_proxies = np.array([1.0, 0.0, 1.0, 0.0, 2.0, 2.0], np.float32)
    for proxy_N in (rng.normal(size=6), equal_proxies):
        expected = over_subsets(proxy_N, gold_N, n)
        assert best_of.best_of_n(proxy_N, gold_N, n) == pytest.approx(expected)


def test_a_perfect_proxy_finds_a_right_reply_as_pass_at_n_does():
    gold_N = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    for n in (1, 2, 4, 8):
        passed = 1 - math.comb(6, n) / math.comb(8, n)
        assert best_of.best_of_n(gold_N, gold_N, n)[1] == pytest.approx(passed)


def test_kl_is_that_of_the_best_of_n_uniform_draws():
    # The rank u of the best of n has the density n u^(n - 1), and KL = E[ln density].
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 16, 64):
        density = n * u ** (n - 1)
        kl = np.mean(density * np.log(np.maximum(density, 1e-300)))
        # The numerical sum has an error of 1e-4.
        assert best_of.kl_of(n) == pytest.approx(kl, abs=1e-4)


def test_curve_has_a_point_for_each_power_of_two():
    rng = np.random.default_rng(0)
    proxy_PN = rng.normal(size=(20, 9))
    points = best_of.compute_curve(proxy_PN, proxy_PN > 1, HOW)
    assert [point['n'] for point in points] == [1, 2, 4, 8]
    first = points[0]
    assert first['kl'] == 0 and first['sqrt_kl'] == 0
    assert first['proxy']['value'] == pytest.approx(proxy_PN.mean())
    proxies = [point['proxy']['value'] for point in points]
    assert proxies == sorted(proxies)
    for point in points:
        low, high = point['gold']['interval']
        assert low <= point['gold']['value'] <= high


# ---- the stage


def config_of(folder, **changes):
    config = common.base()
    config.start = common.start_section(str(folder / 'start'))
    config.task = common.task_section()
    config.task.path = str(folder / 'problems.jsonl')
    config.task.rewards = common.ConfigDict(dict(short=common.reward_part('shortness')))
    config.best_of = common.best_of_section()
    config.best_of.update(problems=4, samples=4, max_tokens=4, slots=8)
    config.chat.template = 'turns'
    config.data.context = 32
    config.eval.resamples = 20
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_the_stage_is_a_function_of_its_seed(tmp_path, capsys):
    starts.write_start(tmp_path)
    config = init_from.inherit_config(config_of(tmp_path), tmp_path / 'run')
    found = best_of.best_of(config, tmp_path / 'run')
    assert [point['n'] for point in found['points']] == [1, 2, 4]
    assert found['points'][-1]['proxy']['value'] >= found['points'][0]['proxy']['value']
    assert best_of.best_of(config, tmp_path / 'run') == found
    best_of.print_best_of(found)
    assert 'Best of n' in capsys.readouterr().out
