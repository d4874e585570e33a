"""Our weights with the names and shapes of Hugging Face `transformers`.

The model has to be a Llama, possibly with Qwen 3's norms of queries and keys, or with
Arcee's feed-forward, a squared ReLU without a gate. The default model has both.
"""

from pathlib import Path

import numpy as np

from gptjax.core.console import UserError
from gptjax.core.model_schema import LATER, MODEL

# The values of model fields that each library supports.
TORCH = dict(position=['rotary'], norm=['rmsnorm'], bias=[False], windows=[(0,)])
TORCH |= dict(tie_embeddings=[False], attention_softcap=[0.0], logit_softcap=[0.0])
TORCH |= dict(dtype=['float32'], mlp=['swiglu', 'relu2'], qk_norm=[False, True])
TORCH |= {name: [MODEL[name].default] for name in LATER}
LLAMA_CPP = TORCH | dict(mlp=['swiglu'], qk_norm=[False])
SUPPORTED = {'torch': TORCH, 'llama.cpp': LLAMA_CPP}


def check(settings, against: str) -> None:
    """Refuses a model that the library does not support."""
    for field, values in SUPPORTED[against].items():
        if settings[field] not in values:
            supported = ' or '.join(map(repr, values))
            raise UserError(
                f'model.{field}={settings[field]!r} is not supported by '
                f'--against={against}, which has {supported}: use '
                'configs/bench.py:llama'
            )


def state_dict(settings, params: dict) -> dict[str, np.ndarray]:
    """The parameters with Hugging Face's names, float32, layers unstacked."""
    # The other library's environment may not have JAX.
    from gptjax.convert import hf_qwen
    from gptjax.convert.family import expand, write_tensor
    from gptjax.convert.hf_folder import flatten

    arrays = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    named = {}
    for rule, layer in expand(hf_qwen.rules(settings), settings.num_layers):
        (target,) = rule.targets
        if layer is None:
            array = arrays[target]
        elif f'layers/{target}' in arrays:
            array = arrays[f'layers/{target}'][layer]
        else:
            continue  # a squared ReLU has no gate
        tensor = write_tensor(rule, [array])
        named[rule.name] = np.ascontiguousarray(tensor, np.float32)
    return named


def sizes(settings) -> dict:
    """The fields of Hugging Face's config, and `qk_norm`."""
    return dict(
        hidden_act={'swiglu': 'silu', 'relu2': 'relu2'}[settings.mlp],
        qk_norm=settings.qk_norm,
        vocab_size=settings.vocab_size,
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.context,
        rope_theta=settings.rotary_base,
        rms_norm_eps=settings.norm_epsilon,
    )


def write(path: Path, settings, params: dict) -> None:
    """Writes `state_dict` and `sizes` (as 'config.NAME') to an .npz file."""
    fields = {f'config.{name}': value for name, value in sizes(settings).items()}
    np.savez(path, **fields, **state_dict(settings, params))


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(`sizes`, `state_dict`) of a file of `write`."""
    arrays = dict(np.load(path))
    fields = [name for name in arrays if name.startswith('config.')]
    sizes = {name.removeprefix('config.'): arrays.pop(name).item() for name in fields}
    return sizes, arrays
