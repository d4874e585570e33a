"""Shared by the tests of the engine: a tokenizer, requests, random weights, engines."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np

from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt
from gptjax.tokenizer.tokenizer import StreamDecoder
from tests import helpers

CONTEXT, CHUNK = 64, 16
EOS = 1
NO_EOS = {EOS: -1000.0}  # a logit bias
GREEDY = SamplingParameters(
    temperature=0.0, max_tokens=10, logprobs=0, logit_bias=NO_EOS
)
DRAWN = SamplingParameters(max_tokens=12, logprobs=20, seed=5)
PROMPTS = [[5], [5, 6, 7, 8, 9], [*range(20, 37)], [*range(3, 20)] * 3, [9] * 16]


def tokenizer():
    """One letter for each token."""
    stub = SimpleNamespace(eos_ids=(EOS,))
    stub.bytes_of = lambda token: bytes([97 + token % 26])
    stub.stream = lambda special: StreamDecoder(stub, special)
    return stub


def random_params(model, seed=0, scale=0.4):
    """Weights large enough that distributions are not uniform."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.device_put(jax.tree.map(draw, gpt.abstract_params(model)))


def new_engine(model, params, **options):
    options = dict(dict(slots=4, chunk=CHUNK), **options)
    engine = Engine(model, params, tokenizer(), **options)
    engine.warm_up()
    return engine


def change(parameters, **fields):
    return dataclasses.replace(parameters, **fields)


def ids(reply):
    return [token.id for token in reply.tokens]


class Even:
    """A grammar that allows tokens with even ids and ends after four."""

    def __init__(self):
        self.accepted = []

    def allowed(self):
        return np.full(-(-helpers.VOCAB // 32), 0x55555555, np.uint32)

    def accept(self, token):
        self.accepted.append(token)

    def ended(self):
        return len(self.accepted) == 4
