"""Reward functions for runs with several processes."""

import jax
import numpy as np


def another_in_each(problems, replies):
    """As if rewards were random; jax.numpy is used as in a user's function."""
    lengths = jax.numpy.array([len(reply.split()) for reply in replies])
    return (-1) ** jax.process_index() / (1 + lengths)


def fails_later(problems, replies):
    """Fails for the training replies, on the first process alone."""
    if len(replies) > 4 and jax.process_index() == 0:
        raise KeyError('no such judge')
    return np.zeros(len(replies))


def share_of_ascii(problems, replies):
    """The share of ASCII characters: about half of random bytes, and soon learned."""
    return [np.mean([c.isascii() for c in reply] or [0]) for reply in replies]
