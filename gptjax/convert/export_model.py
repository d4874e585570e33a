"""The stage `export`: writes a run as the folder of a Hugging Face model.

A run that was imported, or trained from such a run, keeps the config.json and the
tokenizer's files that it came with. Any other run becomes a model of the first family
that has all parts of it.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.convert.export_tokenizer import (
    export_tokenizer,
    name_tokenizer_class,
    write_chat_template,
)
from gptjax.convert.family import (
    PLAIN,
    Family,
    Missing,
    Rule,
    expand,
    tensor_shape,
    write_tensor,
)
from gptjax.convert.hf_folder import (
    FAMILIES,
    INDEX,
    SINGLE,
    find_family,
    flatten,
    make_model,
)
from gptjax.convert.hub_card import write_card
from gptjax.convert.import_model import SMALL_FILES
from gptjax.convert.rotary_scaling import older_fields
from gptjax.core import artifact, run_dir, storage
from gptjax.core.console import UserError, progress_bar
from gptjax.core.storage import refuse_existing, writing_draft
from gptjax.data.chat_template import stop_conditions, to_jinja
from gptjax.models.settings import resolve
from gptjax.tokenizer.import_tokenizer import read_chat_template
from gptjax.train.load_model import (
    IMPORTED,
    inference_mesh,
    load_model,
    load_run_tokenizer,
)

SHARD_BYTES = 5 * 10**9
# In the order in which the library safetensors writes them.
DTYPES = dict(F32=np.float32, BF16=ml_dtypes.bfloat16, F16=np.float16)
NAMES = dict(F32='float32', BF16='bfloat16', F16='float16')
# Sections of the stages that train on conversations in `chat.template`.
CHAT_SECTIONS = {'sft', 'preference', 'policy'}
SIZES = 'num_layers', 'width', 'num_heads', 'mlp_width', 'context', 'vocab_size'


class Description(NamedTuple):
    """What a folder says of a model.

    config: of config.json.
    source: the folder RUN/imported whose tokenizer and generation settings are kept.
    dtypes: by the name of a tensor, 'F32', 'BF16' or 'F16'; None: the same for all.
    """

    family: Family
    config: dict[str, Any]
    source: Path | None = None
    dtypes: Mapping[str, str] | None = None


def export_model(
    config: ConfigDict,
    workdir: Path,
    target: Path,
    step: int | None = None,
    dtype: str | None = None,
) -> None:
    """Writes the folder `target`, whole or not at all.

    Args:
        step: of the checkpoint; None: the best.
        dtype: 'float32' or 'bfloat16'; None: that of each tensor of an imported model,
            and float32 for weights that were trained here.
    """
    refuse_existing(target)
    # A run that no family has is refused before its weights are read.
    _, settings = load_run_tokenizer(config, workdir)
    description = describe(config, workdir, settings)
    architecture = description.config['architectures'][0]
    with progress_bar('reading the model', 0):
        trained = load_model(config, workdir, inference_mesh(config), step)
    dtypes = description.dtypes
    rounded = dtypes is None and dtype == 'bfloat16'
    if dtype is not None or dtypes is None:
        kind = 'BF16' if dtype == 'bfloat16' else 'F32'
        dtypes = dict.fromkeys(tensor_names(description, settings), kind)
    with writing_draft(target) as draft:
        draft.mkdir()
        _write_settings(draft, description, dtypes)
        _write_tokenizer(draft, description, config, workdir)
        write_card(draft, target.name, workdir, trained, architecture, rounded)
        write_weights(draft, description.family, trained, dtypes)
    print(f'{architecture} in {target}')


# ---- which family


def describe(
    config: ConfigDict, workdir: Path, settings: FrozenConfigDict
) -> Description:
    """The family of the model, and its config.json.

    Raises:
        UserError: no family has all parts of it; the message names them.
    """
    for _, run in iterate_runs(config, workdir):
        manifest = artifact.find_manifest(run / IMPORTED)
        if manifest is not None and 'dtypes' in manifest:  # else of an adapter
            hf_config = storage.read_json(run / IMPORTED / 'config.json')
            family = find_family(hf_config)
            hf_config.setdefault('architectures', [manifest['architecture']])
            if _is_same(family, hf_config, settings):
                if run != workdir:
                    hf_config = older_fields(hf_config) | hf_config
                dtypes = manifest['dtypes'] if run == workdir else None
                return Description(family, hf_config, run / IMPORTED, dtypes)
    return describe_new(settings)


def iterate_runs(config: ConfigDict, run: Path) -> Iterator[tuple[ConfigDict, Path]]:
    """A run, the run that it started from, and so on."""
    yield config, run
    while start := config.get('start', {}).get('run'):
        run = Path(start)
        if not (run / 'config.json').exists():
            return
        config = run_dir.read_config(run)
        yield config, run


def trained_template(config: ConfigDict, workdir: Path) -> str | None:
    """The chat template of the last training on conversations; None: there was none."""
    for run_config, _ in iterate_runs(config, workdir):
        if CHAT_SECTIONS & {*run_config}:
            return run_config.chat.template
    return None


def _is_same(family: Family, hf_config: Mapping, settings: FrozenConfigDict) -> bool:
    model = make_model(family.model_fields(hf_config))
    theirs = resolve(model, int(hf_config['vocab_size']))
    return all(theirs[name] == settings[name] for name in (*PLAIN, *SIZES))


def describe_new(settings: FrozenConfigDict) -> Description:
    missing = {}
    for family in FAMILIES:
        try:
            fields = family.hf_fields(settings)
        except Missing as error:
            missing[next(iter(family.architectures))] = error.fields
            continue
        kind = fields.setdefault('model_type', next(iter(family.architectures)))
        fields['architectures'] = [family.architectures[kind]]
        return Description(family, fields)
    nearest = min(missing, key=lambda name: len(missing[name]))
    raise UserError(
        f'no family has all parts of this model: the nearest, {nearest}, lacks '
        f'{", ".join(missing[nearest])}: train one that has them, such as '
        'configs/chitchat.py:export'
    )


# ---- weights


class Planned(NamedTuple):
    """A tensor that is to be written. dtype: 'F32', 'BF16' or 'F16'."""

    rule: Rule
    layer: int | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write_weights(
    folder: Path, family: Family, trained, dtypes: Mapping[str, str]
) -> None:
    """Writes safetensors files of at most 5 GB each, and an index if there are more."""
    params = flatten(trained.params)
    tensors = plan_tensors(family, trained, dtypes)
    shards = [*_split(tensors)]
    stored_in = {}
    with progress_bar('writing', len(tensors), 'tensors') as advance:
        for number, shard in enumerate(shards, 1):
            file = SINGLE
            if len(shards) > 1:
                file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
            stored_in |= {tensor.rule.name: file for tensor in shard}
            _write_file(folder / file, shard, params, advance)
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        index = dict(metadata=dict(total_size=total), weight_map=stored_in)
        storage.write_json(folder / INDEX, index)


def _write_file(path: Path, shard: Sequence[Planned], params, advance) -> None:
    """Writes a safetensors file, with one tensor at a time in memory.

    The format: eight bytes with the size of the header, the header, which is JSON, and
    the tensors, in the order of the library safetensors, which writes the same bytes.
    """
    order = [*DTYPES]
    shard = sorted(shard, key=lambda one: (order.index(one.dtype), one.rule.name))
    header = dict(__metadata__=dict(format='pt'))  # transformers 4 needs it
    end = 0
    for tensor in shard:
        start, end = end, end + tensor.num_bytes
        header[tensor.rule.name] = dict(
            dtype=tensor.dtype, shape=tensor.shape, data_offsets=(start, end)
        )
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for tensor in shard:
            array = _tensor(tensor.rule, tensor.layer, params)
            if array.shape != tensor.shape:
                raise ValueError(f'{tensor}: the array has the shape {array.shape}')
            array = np.ascontiguousarray(array, DTYPES[tensor.dtype])
            file.write(array.view(np.uint8))
            advance(1)


def plan_tensors(
    family: Family, trained, dtypes: Mapping[str, str] | None = None
) -> list[Planned]:
    """The tensors of a model, in the order of `iterate_tensors`; None: all 'F32'."""
    params, settings = flatten(trained.params), trained.settings
    planned = []
    for rule, layer in expand(family.rules(settings), settings.num_layers):
        shapes = [part.shape for part in _parts(rule, layer, params, jax.eval_shape)]
        dtype = 'F32' if dtypes is None else dtypes[rule.name]
        planned.append(Planned(rule, layer, dtype, tensor_shape(rule, shapes)))
    return planned


def iterate_tensors(family: Family, trained) -> Iterator[tuple[str, np.ndarray]]:
    """The name and the values of each tensor, in the dtype of our parameters."""
    params, settings = flatten(trained.params), trained.settings
    for rule, layer in expand(family.rules(settings), settings.num_layers):
        yield rule.name, _tensor(rule, layer, params)


def _tensor(rule: Rule, layer: int | None, params) -> np.ndarray:
    return write_tensor(rule, [np.asarray(p) for p in _parts(rule, layer, params)])


def _split(tensors: Sequence[Planned]) -> Iterator[list[Planned]]:
    shard, size = [], 0
    for tensor in tensors:
        if shard and size + tensor.num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.num_bytes
    yield shard


def _parts(rule: Rule, layer: int | None, params, evaluate=lambda f, x: f(x)):
    """Our parameters that a tensor holds; of shapes alone with `jax.eval_shape`."""
    if layer is None:
        return [params[target] for target in rule.targets]
    stacked = [params[f'layers/{target}'] for target in rule.targets]
    return [evaluate(lambda array: array[layer], array) for array in stacked]


def tensor_names(description: Description, settings: FrozenConfigDict) -> list[str]:
    rules = description.family.rules(settings)
    return [rule.name for rule, _ in expand(rules, settings.num_layers)]


# ---- other files


def _write_settings(
    folder: Path, description: Description, dtypes: Mapping[str, str]
) -> None:
    """Writes config.json. transformers 4 reads `torch_dtype`, 5 also `dtype`."""
    kind, _ = Counter(dtypes.values()).most_common(1)[0]
    fields = dict(description.config)
    if 'dtype' not in fields or 'torch_dtype' in fields:
        fields['torch_dtype'] = NAMES[kind]
    if 'dtype' in fields:
        fields['dtype'] = NAMES[kind]
    storage.write_json(folder / 'config.json', fields)


def _write_tokenizer(
    folder: Path, description: Description, config: ConfigDict, workdir: Path
) -> None:
    """Writes the tokenizer, its template, and the tokens that start and end a text.

    An imported model keeps its files, unless it was trained in another chat template.
    """
    tokenizer, settings = load_run_tokenizer(config, workdir)
    trained, imported = trained_template(config, workdir), description.source
    template = trained or config.chat.template
    if imported is None:
        export_tokenizer(workdir / 'tokenizer', folder, template, settings.context)
    else:
        for name in SMALL_FILES:
            if name != 'config.json' and (imported / name).exists():
                storage.write_bytes(folder / name, (imported / name).read_bytes())
    name_tokenizer_class(folder)
    jinja = to_jinja(template, tokenizer)
    if trained is not None and read_chat_template(folder) != jinja:
        write_chat_template(folder, jinja)
    elif imported is not None:
        return
    _, stop_tokens = stop_conditions(template, tokenizer)
    ends = [*dict.fromkeys((*tokenizer.eos_ids, *stop_tokens))]
    ids = dict(eos_token_id=ends if len(ends) > 1 else ends[0])
    if imported is None:
        ids |= dict(bos_token_id=tokenizer.bos_id, pad_token_id=tokenizer.pad_id)
    for name in ('config.json', 'generation_config.json'):
        path = folder / name
        written = storage.read_json(path) if path.exists() else {}
        storage.write_json(path, written | ids)
