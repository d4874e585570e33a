"""Noise in the inputs of a row; its targets and weights stay those of the text.

The two kinds are those of Xie et al. 2017, 'Data noising as smoothing in neural network
language models', section 3.2. Special tokens never change.
"""

import numpy as np


def replace_tokens(
    inputs_T: np.ndarray,
    changeable_T: np.ndarray,
    chances_T: np.ndarray,
    rate: float,
    others_T: np.ndarray,
) -> np.ndarray:
    """The inputs, where a share `rate` of the changeable ones are those of `others_T`.

    With others_T from a random row this is unigram noising, as a token is drawn in
    proportion to its frequency; with one token that no text has it is blank noising.

    Args:
        chances_T: uniform from 0 to 1.
    """
    return np.where(changeable_T & (chances_T < rate), others_T, inputs_T)
