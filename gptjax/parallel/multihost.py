"""Several processes, one program."""

import jax


def initialize() -> None:
    """Joins the cluster that the environment describes (Cloud TPU, Slurm, …)."""
    jax.distributed.initialize()


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0
