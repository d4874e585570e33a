"""Passes over data that is counted, as a number of updates."""

import math

from ml_collections import ConfigDict


def with_steps(
    config: ConfigDict, epochs: float, rows: float, warmup_part: int = 2
) -> ConfigDict:
    """The config with `train.num_steps` for so many passes over the rows.

    Args:
        config: of the run; epochs 0: its `train.num_steps` stay.
        epochs: passes.
        rows: to train on, `train.batch_size` an update.
        warmup_part: where the steps are few, the warm-up is 1 / warmup_part of them
            at most.
    """
    config = config.copy_and_resolve_references()
    if epochs:
        config.train.num_steps = max(
            1, math.ceil(epochs * rows / config.train.batch_size)
        )
        most = config.train.num_steps // warmup_part
        config.optim.warmup_steps = min(config.optim.warmup_steps, most)
    return config
