"""Folders of Hugging Face models: config.json and safetensors, one file or several."""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  numpy knows bfloat16 once it is imported
import numpy as np
from ml_collections import ConfigDict

from gptjax.convert import (
    hf_gemma,
    hf_gpt2,
    hf_gpt_neox,
    hf_llama,
    hf_olmo2,
    hf_phi3,
    hf_qwen,
)
from gptjax.convert.family import PLAIN, Family, Rule, expand, read_tensor, tensor_shape
from gptjax.core.config import check_fields
from gptjax.core.console import UserError
from gptjax.core.files import read_json_object
from gptjax.core.schema import MODEL
from gptjax.models import gpt
from gptjax.models.settings import resolve
from gptjax.train.checkpoint import name_of

FAMILIES = (
    *(hf_gpt2.FAMILY, hf_gpt_neox.FAMILY, hf_llama.FAMILY, hf_qwen.FAMILY),
    *(hf_gemma.FAMILY, hf_olmo2.FAMILY, hf_phi3.FAMILY),
)
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = 'F32', 'BF16', 'F16'


def find_family(config: Mapping) -> Family:
    """The family of a config.json."""
    name = config.get('model_type')
    known = [kind for family in FAMILIES for kind in family.architectures]
    for family in FAMILIES:
        if name in family.architectures:
            return family
    if name == 'gemma3':
        raise UserError(
            'config.json: this Gemma 3 has a vision tower, which is not supported: '
            'save its text part (language_model) as a folder of its own'
        )
    raise UserError(
        f'config.json: model_type={name!r} is not supported: use one of '
        f'{", ".join(known)}'
    )


class Folder:
    """A folder of `save_pretrained`: `config`, `family`, `settings` and the weights."""

    def __init__(self, path: Path):
        self.path = path
        self.config = self._read_json('config.json')
        with self._reading_config():
            self.family = find_family(self.config)
            if self.config.get('quantization_config'):
                raise UserError(
                    'quantization_config: quantized weights are not supported: save '
                    f'the model with one of {", ".join(DTYPES)}'
                )
        self._tensors = self._list_tensors()
        with self._reading_config():
            self._check_layers()
            self.model = make_model(self.family.model_fields(self.config))
            check_fields(ConfigDict(dict(model=self.model)))
            self.settings = resolve(self.model, int(self.config['vocab_size']))
        self._check_tensors()

    @property
    def architecture(self) -> str:
        """The name of the class, such as 'LlamaForCausalLM'."""
        return self.family.architectures[self.config['model_type']]

    @property
    def weight_files(self) -> list[str]:
        """The names of the files that hold tensors."""
        return sorted({stored.file for stored in self._tensors.values()})

    @property
    def num_tensors(self) -> int:
        """How many tensors `read_params` reads."""
        return sum(len(sources) for sources in self._sources().values())

    def dtypes(self) -> dict[str, str]:
        """By the name of a tensor of the model: 'BF16', 'F16' or 'F32'."""
        rules = self.family.rules(self.settings)
        names = [rule.name for rule, _ in expand(rules, self.settings.num_layers)]
        return {name: self._tensors[name].dtype for name in names}

    def read_params(self, abstract, advance: Callable[[], None] = lambda: None) -> dict:
        """Our parameters with the dtypes and shardings of `abstract`.

        Besides the shards, one tensor of the folder is in memory at a time. `advance`
        is called for each.
        """
        leaves = flatten(abstract)
        made = {
            name: self._read_param(leaves[name], sources, advance)
            for name, sources in self._sources().items()
        }
        return nest(made)

    def _sources(self):
        """By our name of a parameter: [(rule, index of the target, layer)]."""
        sources = {}
        for rule, layer in expand(
            self.family.rules(self.settings), self.settings.num_layers
        ):
            for index, target in enumerate(rule.targets):
                name = target if layer is None else f'layers/{target}'
                sources.setdefault(name, []).append((rule, index, layer))
        return sources

    def _read_param(self, leaf, sources, advance):
        def bounds(index):
            axes = zip(index, leaf.shape, strict=True)
            return tuple(axis.indices(size)[:2] for axis, size in axes)

        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        shards = {}
        for index in indices:
            sizes = [end - start for start, end in bounds(index)]
            shards[bounds(index)] = _empty(sizes, leaf.dtype)
        for rule, target, layer in sources:
            tensor = self._read_tensor(rule.name)
            part = read_tensor(rule, tensor, self._target_shapes(rule, layer))[target]
            for index, shard in shards.items():
                cut = tuple(slice(*ends) for ends in index)
                if layer is None:
                    shard[...] = part[cut]
                elif index[0][0] <= layer < index[0][1]:
                    shard[layer - index[0][0]] = part[cut[1:]]
            advance()
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: shards[bounds(index)]
        )

    def _target_shapes(self, rule: Rule, layer):
        if layer is None:
            return [self._shapes[target] for target in rule.targets]
        return [self._shapes[f'layers/{target}'][1:] for target in rule.targets]

    # ---- files

    @contextlib.contextmanager
    def _reading_config(self):
        """Errors name the file."""
        try:
            yield
        except UserError as error:
            text = str(error).removeprefix('config.json: ')
            raise UserError(f'{self.path}/config.json: {text}') from None
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f'{self.path}/config.json: a field is missing or has another type '
                f'({type(error).__name__}: {error}): copy or download it again'
            ) from None

    def _read_json(self, name):
        try:
            return read_json_object(self.path / name)
        except FileNotFoundError:
            raise UserError(
                f'{self.path} has no {name}: name a folder of a Hugging Face model'
            ) from None

    def _list_tensors(self) -> dict[str, 'Stored']:
        files = [SINGLE]
        if (self.path / INDEX).exists():
            stored_in = self._read_json(INDEX).get('weight_map')
            files = [*stored_in.values()] if isinstance(stored_in, dict) else [None]
            if not all(isinstance(f, str) and f == Path(f).name for f in files):
                raise UserError(
                    f'{self.path}/{INDEX}: weight_map does not name files of this '
                    'folder: copy or download it again'
                )
            files = sorted({*files})
        tensors = {}
        for name in files:
            tensors |= _list_file(self.path, name)
        prefix = self.family.prefix
        if any(name.startswith(prefix) for name in tensors):
            return tensors
        return {
            name if name.startswith('lm_head.') else prefix + name: stored
            for name, stored in tensors.items()
        }

    def _check_layers(self):
        """Before anything is made for each layer."""
        for name in ('num_hidden_layers', 'n_layer'):
            L = self.config.get(name, 0)
            if isinstance(L, int) and L > len(self._tensors):
                raise UserError(
                    f'there are {len(self._tensors):,} tensors, and {name}={L:,}: copy '
                    'or download both again'
                )

    def _check_tensors(self):
        abstract = flatten(gpt.abstract_params(self.settings))
        self._shapes = {name: leaf.shape for name, leaf in abstract.items()}
        expected = {
            rule.name: tensor_shape(rule, self._target_shapes(rule, layer))
            for rule, layer in expand(
                self.family.rules(self.settings), self.settings.num_layers
            )
        }
        # A tied head is stored in some folders all the same.
        extra = {
            name
            for name in self._tensors.keys() - expected.keys()
            if not name.endswith(self.family.ignored)
            and not (self.settings.tie_embeddings and name == 'lm_head.weight')
        }
        missing = expected.keys() - self._tensors.keys()
        for names, words in ((missing, 'lacks'), (extra, 'has an unknown tensor,')):
            if names:
                raise UserError(
                    f'{self.path} {words} {min(names)} ({len(names):,} in all): its '
                    'config.json does not describe its weights: copy or download both '
                    'again'
                )
        for name, shape in expected.items():
            if self._tensors[name].shape != shape:
                raise UserError(
                    f'{self.path}: {name} is {self._tensors[name].shape}, and '
                    f'config.json says {shape}: copy or download both again'
                )
            if self._tensors[name].dtype not in DTYPES:
                raise UserError(
                    f'{self.path}: {name} has the dtype {self._tensors[name].dtype}: '
                    f'save the model with one of {", ".join(DTYPES)}'
                )

    def _read_tensor(self, name) -> np.ndarray:
        stored = self._tensors[name]
        with _open(self.path / stored.file) as file:
            return file.get_tensor(stored.name)


class Stored(NamedTuple):
    """Where a tensor is, under which name, its shape and its dtype."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str


def _list_file(folder: Path, name: str) -> dict[str, Stored]:
    if not (folder / name).exists():
        pickled = sorted(folder.glob('pytorch_model*.bin'))
        if pickled and name == SINGLE:  # else a shard of safetensors is missing
            raise UserError(
                f'{pickled[0]}: pickled weights can run code and are not read: save '
                'the model as safetensors (save_pretrained of transformers does)'
            )
        raise UserError(f'{folder} lacks {name}: copy or download it again')
    with _open(folder / name) as file:
        slices = {tensor: file.get_slice(tensor) for tensor in file.keys()}
        return {
            tensor: Stored(name, tensor, tuple(part.get_shape()), part.get_dtype())
            for tensor, part in slices.items()
        }


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a small file."""
    if not path.exists():
        raise UserError(f'{path}: no such file: copy or download it again')
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@contextlib.contextmanager
def _open(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, 'np')
    except (SafetensorError, OSError) as error:
        raise UserError(
            f'{path} is damaged or cut off ({error}): copy or download it again'
        ) from None
    with file:
        yield file


def make_model(fields: Mapping) -> ConfigDict:
    """`config.model` with these fields; the others are plain or have their default."""
    defaults = {name: field.default for name, field in MODEL.items()}
    return ConfigDict({**defaults, **PLAIN, **fields})


def _empty(shape, dtype) -> np.ndarray:
    """An array that JAX on a CPU uses without a copy: it starts at a multiple of 64."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def flatten(tree) -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a/b': 1}."""
    return {
        name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nest(flat: Mapping[str, Any]) -> dict:
    """{'a/b': 1} -> {'a': {'b': 1}}."""
    tree = {}
    for name, value in flat.items():
        *folders, last = name.split('/')
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return tree
