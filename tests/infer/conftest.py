import jax
import numpy as np
import pytest

from gptjax.models import gpt
from tests import helpers
from tests.infer import engines


@pytest.fixture(scope='package', autouse=True)
def small_pages():
    """Makes pages so small that prompts, replies and blocks cross their boundaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('gptjax.models.cache.MIN_PAGE_SIZE', 40)
        yield


@pytest.fixture(scope='package')
def model():
    return helpers.model_settings(
        num_kv_heads=2, windows=(9, 0), context=engines.CONTEXT
    )


@pytest.fixture(scope='package')
def params(model):
    return engines.random_params(model)


@pytest.fixture(scope='package')
def shared_engine(model, params):
    return engines.new_engine(model, params)


@pytest.fixture(scope='package')
def one_slot(model, params):
    return engines.new_engine(model, params, slots=1, queue=2)


@pytest.fixture
def engine(shared_engine):
    """The shared engine; every test must leave it idle."""
    yield shared_engine
    while shared_engine.step():
        pass
    stats = shared_engine.stats()
    assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0.0)


@pytest.fixture(scope='package')
def full_forward(model, params):
    """tokens -> ln P (T, V) of the token after each of them, without a cache."""

    @jax.jit
    def logprobs(tokens):
        positions = np.arange(engines.CONTEXT, dtype=np.int32)[None]
        logits = gpt.bind(model, params)(tokens, np.ones_like(positions), positions)
        return jax.nn.log_softmax(logits[0])

    def run(tokens):
        padded = np.zeros((1, engines.CONTEXT), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.array(logprobs(padded))[: len(tokens)]

    return run
