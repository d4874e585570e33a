"""Folders of Hugging Face models: config.json and safetensors, one file or several."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from gptjax.core.console import UserError
from gptjax.core.schema import MODEL
from gptjax.models import gpt
from gptjax.models.settings import resolve

FAMILIES = (
    *(hf_gpt2.FAMILY, hf_gpt_neox.FAMILY, hf_llama.FAMILY, hf_qwen.FAMILY),
    *(hf_gemma.FAMILY, hf_olmo2.FAMILY, hf_phi3.FAMILY),
)
INDEX = 'model.safetensors.index.json'


def find_family(config: Mapping) -> Family:
    """The family of a config.json."""
    name = config.get('model_type')
    known = [kind for family in FAMILIES for kind in family.architectures]
    for family in FAMILIES:
        if name in family.architectures:
            return family
    raise UserError(
        f'config.json: model_type={name!r} is not supported: use one of '
        f'{", ".join(known)}'
    )


class Folder:
    """A folder of `save_pretrained`: `config`, `family`, `settings` and the weights."""

    def __init__(self, path: Path):
        self.path = path
        self.config = self._read_json('config.json')
        self.family = find_family(self.config)
        try:
            fields = self.family.model_fields(self.config)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'{path}/config.json: a field is missing or has another type ({error})'
            ) from None
        self.model = make_model(fields)
        self.settings = resolve(self.model, int(self.config['vocab_size']))
        self._tensors = self._list_tensors()
        self._check_tensors()

    def read_params(self, put: Callable[[str, np.ndarray], Any]) -> dict:
        """Our parameters, one after another as `put(name, float32 array)`."""
        made = {}
        for name, sources in self._sources().items():
            made[name] = put(name, self._read_param(name, sources))
        return _nest(made)

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

    def _read_param(self, name, sources):
        shape = self._shapes[name]
        array = np.empty(shape, np.float32)
        for rule, index, layer in sources:
            shapes = self._target_shapes(rule, layer)
            part = read_tensor(rule, self._read_tensor(rule.name), shapes)[index]
            array[... if layer is None else layer] = part
        return array

    def _target_shapes(self, rule: Rule, layer):
        if layer is None:
            return [self._shapes[target] for target in rule.targets]
        return [self._shapes[f'layers/{target}'][1:] for target in rule.targets]

    # ---- files

    def _read_json(self, name):
        try:
            content = json.loads((self.path / name).read_text('utf-8'))
        except FileNotFoundError:
            raise UserError(
                f'{self.path} has no {name}: name a folder of a Hugging Face model'
            ) from None
        except ValueError as error:
            raise UserError(f'{self.path}/{name} is not JSON ({error})') from None
        if not isinstance(content, dict):
            raise UserError(f'{self.path}/{name} is not a JSON object')
        return content

    def _list_tensors(self) -> dict[str, 'Stored']:
        if (self.path / INDEX).exists():
            files = sorted(set(self._read_json(INDEX).get('weight_map', {}).values()))
        else:
            files = ['model.safetensors']
        tensors = {}
        for name in files:
            tensors |= _list_file(self.path, name)
        return tensors

    def _check_tensors(self):
        self._shapes = {
            _name(path): leaf.shape for path, leaf in _leaves(self.settings)
        }
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
                    'config.json does not describe its weights'
                )
        for name, shape in expected.items():
            if self._tensors[name].shape != shape:
                raise UserError(
                    f'{self.path}: {name} is {self._tensors[name].shape}, and '
                    f'config.json says {shape}'
                )

    def _read_tensor(self, name) -> np.ndarray:
        with _open(self.path / self._tensors[name].file) as file:
            return file.get_tensor(name)


class Stored(NamedTuple):
    """Where a tensor is, and its shape."""

    file: str
    shape: tuple[int, ...]


def _list_file(folder: Path, name: str) -> dict[str, Stored]:
    if not (folder / name).exists():
        pickled = sorted(folder.glob('*.bin'))
        if pickled:
            raise UserError(
                f'{pickled[0]}: pickled weights can run code and are not read: save '
                'the model as safetensors (save_pretrained of transformers does)'
            )
        raise UserError(f'{folder} lacks {name}: copy or download it again')
    with _open(folder / name) as file:
        return {
            tensor: Stored(name, tuple(file.get_slice(tensor).get_shape()))
            for tensor in file.keys()
        }


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


def _leaves(settings):
    import jax

    return jax.tree_util.tree_leaves_with_path(gpt.abstract_params(settings))


def _name(path) -> str:
    return '/'.join(key.key for key in path)


def _nest(flat: Mapping[str, Any]) -> dict:
    """{'a/b': 1} -> {'a': {'b': 1}}."""
    tree = {}
    for name, value in flat.items():
        *folders, last = name.split('/')
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return tree
