"""What a family of Hugging Face models is: names of tensors, and fields of config.json.

A family is one file `hf_NAME.py` with a `Family`. A rule says which of our parameters a
tensor holds:

    model.embed_tokens.weight (V, D)                 SAME    embed/token
    model.layers.3.self_attn.q_proj.weight (N H, D)  LINEAR  attention/query of layer 3
    transformer.h.3.attn.c_attn.weight (D, 3 N H)    CONV1D  attention/query, then key,
                                                             then value, of layer 3

Our weights have the inputs first, and heads as an axis of their own: (D, N, H).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.console import UserError
from gptjax.models.linear import INPUT_AXES

SAME = 'same'  # the same elements in the same order: norms, embeddings
LINEAR = 'linear'  # outputs first, as torch.nn.Linear; a bias has outputs alone
CONV1D = 'conv1d'  # outputs last, as GPT-2 has them
BY_HEAD = 'by_head'  # LINEAR, where a head's query, key and value are neighbours


class Rule(NamedTuple):
    """A tensor of the family.

    name: of the tensor; {} is the number of the layer.
    targets: our parameters that it holds one after another, as 'attention/query' within
        a layer if the name has {}, or 'embed/token'.
    layout: SAME, LINEAR, CONV1D or BY_HEAD.
    """

    name: str
    targets: tuple[str, ...]
    layout: str = LINEAR


class Family(NamedTuple):
    """A family of models.

    architectures: by `model_type` of config.json, the name of the class.
    model_fields: config.json -> fields of `config.model` that are not the default.
    hf_fields: settings of a model -> fields of config.json, with `model_type` if the
        family has several; `Missing` if it lacks a part of the model.
    rules: settings of a model -> the rules of its tensors.
    ignored: ends of names of tensors that hold no parameter, such as masks.
    prefix: of all names but the head's; folders of the bare model lack it.
    """

    architectures: dict[str, str]
    model_fields: Callable[[Mapping], dict[str, Any]]
    hf_fields: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], Sequence[Rule]]
    ignored: tuple[str, ...] = ()
    prefix: str = ''


# Fields of `config.model` that every family states; the others have these values.
PLAIN = dict(
    num_kv_heads=0,
    head_dim=0,
    position='rotary',
    rotary_base=10_000.0,
    rotary_share=1.0,
    rotary_frequencies=(),
    rotary_scale=1.0,
    rotary_local_base=0.0,
    norm='rmsnorm',
    norm_place='before',
    norm_offset=0.0,
    norm_epsilon=1e-6,
    mlp='swiglu',
    parallel=False,
    qk_norm=False,
    qk_norm_axis='head',
    query_scale=0.0,
    windows=(0,),
    attention_softcap=0.0,
    logit_softcap=0.0,
    bias=False,
    qkv_bias=False,
    embedding_scale=1.0,
    tie_embeddings=False,
)


def require_values(config: Mapping, **values) -> None:
    """Refuses a field of config.json that has another value than the given one."""
    for name, value in values.items():
        if config.get(name) not in (None, value):
            raise UserError(
                f'config.json: {name}={config[name]!r} is not supported, only {value!r}'
            )


class Missing(Exception):
    """The family lacks parts of a model: `fields`, such as "model.mlp='relu2'"."""

    def __init__(self, fields: list[str]):
        super().__init__(', '.join(fields))
        self.fields = fields


def require_fields(settings, **supported) -> None:
    """Refuses a model with a part that the family lacks.

    `supported` has a tuple of values for each field that may differ from `PLAIN`, and
    None for fields of which every value is supported.
    """
    missing = []
    for name, plain in PLAIN.items():
        values = supported.get(name, (plain,))
        if values is not None and settings[name] not in values:
            missing.append(f'model.{name}={settings[name]!r}')
    if missing:
        raise Missing(missing)


# ---- one tensor


def read_tensor(
    rule: Rule, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Our parameters, of these shapes, that a tensor holds: one for each target."""
    if rule.layout == SAME:
        return [tensor.reshape(shapes[0])]
    if rule.layout == CONV1D:
        tensor = tensor.T  # outputs first; a bias does not change
    if rule.layout == BY_HEAD:  # (N 3 H, …) -> (3 N H, …)
        heads = shapes[0][-2]
        split = tensor.reshape(heads, len(shapes), -1, *tensor.shape[1:])
        tensor = split.swapaxes(0, 1).reshape(tensor.shape)
    sizes = [_num_outputs(*target) for target in zip(rule.targets, shapes, strict=True)]
    parts = np.split(tensor, np.cumsum(sizes)[:-1])
    return [part.T.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def write_tensor(rule: Rule, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor that holds our parameters: the inverse of `read_tensor`."""
    if rule.layout == SAME:
        return arrays[0]
    parts = []
    for target, array in zip(rule.targets, arrays, strict=True):
        outputs = _num_outputs(target, array.shape)
        is_bias = outputs == array.size
        parts.append(
            array.reshape(outputs) if is_bias else array.reshape(-1, outputs).T
        )
    tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if rule.layout == BY_HEAD:  # (3 N H, …) -> (N 3 H, …)
        heads = arrays[0].shape[-2]
        split = tensor.reshape(len(arrays), heads, -1, *tensor.shape[1:])
        tensor = split.swapaxes(0, 1).reshape(tensor.shape)
    return tensor.T if rule.layout == CONV1D else tensor


def tensor_shape(rule: Rule, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the tensor that holds parameters of these shapes."""
    if rule.layout == SAME:
        return shapes[0]
    outputs = [
        _num_outputs(*target) for target in zip(rule.targets, shapes, strict=True)
    ]
    inputs = math.prod(shapes[0]) // outputs[0]
    shape = (sum(outputs), inputs) if inputs > 1 else (sum(outputs),)
    return shape[::-1] if rule.layout == CONV1D else shape


def _num_outputs(target: str, shape: tuple[int, ...]) -> int:
    """The number of outputs of a weight, or of a bias."""
    return math.prod(shape[INPUT_AXES.get(target.split('/')[-1], 0) :])


def expand(rules: Sequence[Rule], num_layers: int) -> Iterator[tuple[Rule, int | None]]:
    """Each tensor of a model as (its rule with the name filled in, its layer)."""
    for rule in rules:
        if '{}' not in rule.name:
            yield rule, None
            continue
        for layer in range(num_layers):
            yield rule._replace(name=rule.name.format(layer)), layer
