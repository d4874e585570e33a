"""Runs side by side have the losses of runs with their own seed and learning rate."""

import jax
import numpy as np

from gptjax.bench import bench_many
from gptjax.parallel.mesh import make_mesh
from gptjax.train.short_run import make_short_run
from tests import helpers


def test_losses_equal_those_of_single_runs():
    config = helpers.config(num_layers=1)
    config.tokenizer.vocab_size = helpers.VOCAB
    config.optim.update(dict(name='adamw', weight_decay=0.1, warmup_steps=0))
    seeds, ratios, steps = (3, 4, 4), (1.0, 0.25, 3.0), 3
    batch_of = lambda seed, step: helpers.packed_batch(seed=100 * seed + step)
    init, step = bench_many.make_many(config)
    single, many = np.zeros((2, steps, len(seeds)))
    with jax.set_mesh(make_mesh(config.mesh)):
        state = init(seeds, ratios)
        for number in range(steps):
            batches = [batch_of(seed, number) for seed in seeds]
            batches = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
            state, metrics = step(state, batches)
            many[number] = metrics['loss']
        for place, (seed, ratio) in enumerate(zip(seeds, ratios, strict=True)):
            own = config.copy_and_resolve_references()
            own.seed = seed
            own.optim.learning_rate = ratio * config.optim.learning_rate
            run = make_short_run(own)
            state = run.init(seed)
            for number in range(steps):
                state, metrics = run.step(state, batch_of(seed, number))
                single[number, place] = metrics['loss']
    np.testing.assert_allclose(many, single, rtol=2e-6)
    assert np.ptp(single[-1]) > 0.01  # the runs differ
