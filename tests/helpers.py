"""Helpers of several tests: a small model, random packed batches, a mesh."""

import jax
import numpy as np

from configs import common
from gptjax.models import settings
from gptjax.parallel.mesh import make_mesh

VOCAB = 96


def config(**model):
    """An experiment with a tiny model; `model` changes its fields."""
    config = common.base()
    config.model.update(num_layers=2, width=32, num_heads=4, context=32)
    config.model.update(model)
    config.data.context = 32
    config.train.update(num_steps=20, batch_size=8)
    config.optim.warmup_steps = 2
    return config


def model_settings(**model):
    return settings.resolve(config(**model).model, VOCAB)


def packed_batch(seed=0, batch=8, context=32, documents=3):
    """A batch of random tokens. Each row packs documents; the last row has padding."""
    rng = np.random.default_rng(seed)
    shape = (batch, context)
    segments = np.zeros(shape, np.int32)
    positions = np.zeros(shape, np.int32)
    for row in range(batch):
        cuts = np.sort(rng.choice(np.arange(1, context), documents - 1, replace=False))
        edges = [0, *cuts, context]
        for number in range(documents):
            start, end = edges[number : number + 2]
            segments[row, start:end] = number + 1
            positions[row, start:end] = np.arange(end - start)
    segments[-1, -3:] = 0
    return dict(
        inputs=rng.integers(3, VOCAB, shape).astype(np.int32),
        targets=rng.integers(3, VOCAB, shape).astype(np.int32),
        segments=segments,
        positions=positions,
        weights=(segments > 0).astype(np.float32),
    )


def mesh_of(data=1, fsdp=1, tensor=1, context=1):
    section = common.base().mesh
    section.update(data=data, fsdp=fsdp, tensor=tensor, context=context)
    return make_mesh(section, jax.devices()[: data * fsdp * tensor * context])


def assert_trees_close(left, right, rtol=0.0, atol=0.0):
    """Compares two trees leaf by leaf; a message names the leaf that differs."""
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            np.asarray(a),
            np.asarray(b),
            rtol=rtol,
            atol=atol,
            err_msg=jax.tree_util.keystr(path),
        ),
        left,
        right,
    )


def assert_close_in_norm(left, right, bound):
    """|left - right| <= bound |right| of each leaf as a vector, in float64.

    This ratio measures rounding better than elements do: an element near 0 has a large
    relative error.
    """

    def check(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        ratio = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert ratio <= bound, f'{jax.tree_util.keystr(path)}: {ratio}'

    jax.tree_util.tree_map_with_path(check, left, right)
