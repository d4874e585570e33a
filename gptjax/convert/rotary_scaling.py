"""Rotary frequencies that Hugging Face's config.json describes in words.

Newer files have `rope_parameters`, older ones `rope_theta` and `rope_scaling`; some
have both. A file with the newer form alone must not be read as if it had no scaling.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gptjax.core.console import UserError


def rotary_fields(config: Mapping, head_dim: int, kind: str = '') -> dict[str, Any]:
    """`rotary_base`, `rotary_share`, `rotary_frequencies` and `rotary_scale`.

    kind: 'full_attention' or 'sliding_attention', where these differ.
    """
    rope = dict(config.get('rope_parameters') or {})
    rope = dict(rope[kind]) if kind and kind in rope else rope
    scaling = dict(config.get('rope_scaling') or {})
    rope = {
        'rope_theta': config.get('rope_theta', config.get('rotary_emb_base', 10_000.0)),
        'partial_rotary_factor': config.get(
            'partial_rotary_factor', config.get('rotary_pct', 1.0)
        ),
        'rope_type': scaling.get('rope_type', scaling.get('type', 'default')),
        **scaling,
        **rope,
    }
    base, share = float(rope['rope_theta']), float(rope['partial_rotary_factor'])
    fields = dict(rotary_base=base, rotary_share=share)
    name = rope['rope_type']
    if name == 'default':
        return fields
    if name not in SCALINGS:
        raise UserError(
            f'config.json: rope_type={name!r} is not supported: use one of '
            f'{", ".join(["default", *SCALINGS])}'
        )
    size = int(head_dim * share)
    frequencies_h = 1 / base ** (np.arange(0, size, 2, dtype=np.float32) / size)
    scaled_h, scale = SCALINGS[name](frequencies_h, base, rope, config)
    return dict(
        fields,
        rotary_frequencies=tuple(np.float32(scaled_h).tolist()),
        rotary_scale=float(scale),
    )


def older_fields(config: Mapping) -> dict[str, Any]:
    """`rope_parameters` as transformers 4 reads it, which passes over that name."""
    rope = config.get('rope_parameters') or {}
    full, sliding = rope.get('full_attention', rope), rope.get('sliding_attention', {})
    is_neox = config.get('model_type') == 'gpt_neox'
    names = dict(
        rope_theta='rotary_emb_base' if is_neox else 'rope_theta',
        partial_rotary_factor='rotary_pct' if is_neox else 'partial_rotary_factor',
    )
    fields = {older: full[name] for name, older in names.items() if name in full}
    scaling = {name: value for name, value in full.items() if name not in names}
    kind = scaling.get('rope_type', 'default')
    if config.get('model_type') == 'phi3':  # it refuses further entries
        lists = ('short_factor', 'long_factor')
        scaling = dict(type=kind, **{n: scaling[n] for n in lists if n in scaling})
    if kind != 'default':
        fields['rope_scaling'] = scaling
    if 'rope_theta' in sliding:
        fields['rope_local_base_freq'] = sliding['rope_theta']
    return fields


def linear(frequencies_h, base, rope, config):
    """Positions are divided by the factor (Chen et al. 2023)."""
    return frequencies_h / rope['factor'], 1.0


def llama3(frequencies_h, base, rope, config):
    """Long wavelengths are stretched, short ones are not (Llama Team 2024)."""
    context = rope['original_max_position_embeddings']
    low, high = rope['low_freq_factor'], rope['high_freq_factor']
    wavelengths_h = 2 * math.pi / frequencies_h
    # From 0 at wavelengths of context / low to 1 at context / high.
    share_h = np.clip((context / wavelengths_h - low) / (high - low), 0, 1)
    return (1 - share_h) * frequencies_h / rope['factor'] + share_h * frequencies_h, 1.0


def yarn(frequencies_h, base, rope, config):
    """As `llama3`, but linear in the number of the pair (Peng et al. 2023)."""
    factor, size = rope['factor'], 2 * len(frequencies_h)
    context = (
        rope.get('original_max_position_embeddings')
        or (config['max_position_embeddings'])
    )

    def pair_with(rotations):  # the pair that turns so often within the context
        return (
            size * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))
        )

    first = pair_with(rope.get('beta_fast') or 32)
    last = pair_with(rope.get('beta_slow') or 1)
    if rope.get('truncate', True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last
    stretched_h = np.clip((np.arange(size // 2) - first) / (last - first), 0, 1)
    mixed_h = frequencies_h / factor * stretched_h + frequencies_h * (1 - stretched_h)
    return mixed_h, rope.get('attention_factor') or _yarn_scale(factor, rope)


def _yarn_scale(factor, rope):
    """0.1 m ln(factor) + 1, of the paper's section 3.4; DeepSeek's files have two m."""
    scale = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
    if rope.get('mscale') and rope.get('mscale_all_dim'):
        return scale(rope['mscale']) / scale(rope['mscale_all_dim'])
    return scale(1)


def longrope(frequencies_h, base, rope, config):
    """A factor of its own for each pair (Ding et al. 2024).

    There are two lists, for texts within the original context and for longer ones. The
    model has to be run with one of them: the long one if it has a longer context.
    """
    context = config['max_position_embeddings']
    original = rope.get('original_max_position_embeddings') or (
        config.get('original_max_position_embeddings') or context
    )
    factor = context / original
    which = 'long_factor' if factor > 1 else 'short_factor'
    scale = rope.get('attention_factor') or (
        math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    )
    return frequencies_h / np.asarray(rope[which], np.float32), scale


SCALINGS = dict(linear=linear, llama3=llama3, yarn=yarn, longrope=longrope)
