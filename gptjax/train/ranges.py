"""The numbers that each config field may be: one table, read before work begins."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core.console import UserError


class Range(NamedTuple):
    """Whether a finite number is allowed, and the words for those that are."""

    holds: Callable[[float], bool]
    words: str


COUNT = Range(lambda x: x >= 1, 'a number of at least 1')
TWO_OR_MORE = Range(lambda x: x >= 2, 'a number of at least 2')
STEP_OR_NONE = Range(lambda x: x >= -1, 'the number of a step, or -1')
AMOUNT = Range(lambda x: x >= 0, '0 or a positive number')
POSITIVE = Range(lambda x: x > 0, 'a positive number')
SHARE = Range(lambda x: 0 <= x <= 1, 'a share from 0 to 1')
BELOW_ONE = Range(lambda x: 0 <= x < 1, 'a number from 0 to below 1')
INNER_SHARE = Range(lambda x: 0 < x < 1, 'a share between 0 and 1')
SOME_SHARE = Range(lambda x: 0 < x <= 1, 'a share above 0, at most 1')
SEED = Range(lambda x: 0 <= x < 2**32, f'a number from 0 to {2**32 - 1}')
MESH_SIZE = Range(lambda x: x >= 1 or x == -1, 'a positive size, or -1')

# Every number of `base()` in configs/common.py. What `*` stands for is any name.
RANGES = {
    'seed': SEED,
    'data.sources.*.weight': AMOUNT,
    'data.sources.*.limit': AMOUNT,
    'data.min_characters': AMOUNT,
    'data.max_characters': COUNT,
    'data.max_repetition': SHARE,
    'data.validation_fraction': INNER_SHARE,
    'data.context': COUNT,
    'data.workers': AMOUNT,
    'tokenizer.vocab_size': COUNT,
    'tokenizer.train_characters': COUNT,
    'model.num_layers': COUNT,
    'model.width': COUNT,
    'model.num_heads': COUNT,
    'model.num_kv_heads': AMOUNT,
    'model.head_dim': AMOUNT,
    'model.mlp_width': AMOUNT,
    'model.context': COUNT,
    'model.rotary_base': POSITIVE,
    'model.norm_epsilon': AMOUNT,
    'model.attention_softcap': AMOUNT,
    'model.logit_softcap': AMOUNT,
    'model.embedding_dropout': BELOW_ONE,
    'model.attention_dropout': BELOW_ONE,
    'model.residual_dropout': BELOW_ONE,
    'model.init_std': AMOUNT,
    'model.embedding_std': AMOUNT,
    'model.unroll': COUNT,
    'mesh.data': MESH_SIZE,
    'mesh.fsdp': MESH_SIZE,
    'mesh.tensor': MESH_SIZE,
    'mesh.context': MESH_SIZE,
    'optim.learning_rate': AMOUNT,
    'optim.matrix_learning_rate': AMOUNT,
    'optim.embedding_scale': AMOUNT,
    'optim.head_scale': AMOUNT,
    'optim.warmup_steps': AMOUNT,
    'optim.decay_fraction': SHARE,
    'optim.final_scale': SHARE,
    'optim.beta1': BELOW_ONE,
    'optim.beta2': BELOW_ONE,
    'optim.epsilon': AMOUNT,
    'optim.momentum': BELOW_ONE,
    'optim.weight_decay': AMOUNT,
    'optim.clip_norm': AMOUNT,
    'optim.ema': BELOW_ONE,
    'train.num_steps': COUNT,
    'train.batch_size': COUNT,
    'train.accumulation': COUNT,
    'train.z_loss': AMOUNT,
    'train.label_smoothing': BELOW_ONE,
    'train.loss_chunk': AMOUNT,
    'train.eval_every': COUNT,
    'train.eval_batches': AMOUNT,
    'train.patience': AMOUNT,
    'train.max_bad_steps': COUNT,
    'train.profile_step': STEP_OR_NONE,
    'train.peak_tflops': AMOUNT,
    'checkpoint.every': COUNT,
    'checkpoint.keep': COUNT,
    'checkpoint.keep_best': AMOUNT,
    'eval.stride': AMOUNT,
    'eval.batch_size': COUNT,
    'eval.documents': AMOUNT,
    'eval.conversations': AMOUNT,
    'eval.choices': TWO_OR_MORE,
    'eval.max_tokens': COUNT,
    'eval.temperature': AMOUNT,
    'eval.top_k': AMOUNT,
    'eval.top_p': SOME_SHARE,
    'eval.resamples': COUNT,
    'eval.level': INNER_SHARE,
    'eval.seed': SEED,
    'sample.max_tokens': COUNT,
    'sample.temperature': AMOUNT,
    'sample.top_k': AMOUNT,
    'sample.top_p': SOME_SHARE,
    'sample.min_p': SHARE,
}


def check_numbers(config: ConfigDict) -> None:
    """Refuses numbers that mean nothing.

    The sections that only some stages have are theirs to check.

    Raises:
        UserError: a field is out of its range, infinite or no number.
    """
    for name, value in numbers_of(config):
        allowed = RANGES.get(pattern_of(name))
        if allowed and not (abs(value) < float('inf') and allowed.holds(value)):
            raise UserError(f'{name}={value}: use {allowed.words}')


def numbers_of(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, float]]:
    """('model.width', 192) of every number in a config; a boolean is none."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from numbers_of(value, f'{prefix}{name}.')
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f'{prefix}{name}', value


def pattern_of(name: str) -> str:
    """A field as the table has it: a source's name is `*`, whatever reads it."""
    return re.sub(r'^\w+\.sources\.[^.]+\.', 'data.sources.*.', name)
