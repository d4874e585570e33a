"""LoRA adapters in the form of the library `peft`, out and in.

    adapter_config.json          r, lora_alpha, target_modules
    adapter_model.safetensors    for each target and layer a pair of matrices:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (r, in)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight  (out, r)

Ours are A (in, r) and B (r, out), stacked over the layers. Both add alpha / r times
their product to a matrix. An imported adapter is a LoRA run, whose `start.run` is the
run of its base model.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.convert.export_model import describe
from gptjax.convert.family import LINEAR, Family
from gptjax.convert.hf_folder import flatten, nest, read_safetensors
from gptjax.core import artifact, run_dir, storage
from gptjax.core.config import base_config, check_fields, default_context
from gptjax.core.console import UserError
from gptjax.core.files import read_json_object
from gptjax.models import lora
from gptjax.train import init_from
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import (
    IMPORTED,
    abstract_imported,
    inference_mesh,
    load_base,
    load_parts,
    load_run_tokenizer,
    model_identity,
    uses_lora,
)
from gptjax.train.state import TrainState

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
PICKLED = 'adapter_model.bin'
PREFIX = 'base_model.model.'
# Fields of adapter_config.json that change what is computed, and their plain values.
PLAIN = dict(
    bias='none',
    use_dora=False,
    rank_pattern={},
    alpha_pattern={},
    modules_to_save=None,
    fan_in_fan_out=False,
    layers_to_transform=None,
    trainable_token_indices=None,
)


def _modules(family: Family, settings: FrozenConfigDict) -> dict[str, str]:
    """By our parameter, such as 'attention/query', the name of the module with a {}."""
    return {
        rule.targets[0]: rule.name.removesuffix('.weight')
        for rule in family.rules(settings)
        if rule.layout == LINEAR and len(rule.targets) == 1 and '{}' in rule.name
    }


def export_adapter(
    config: ConfigDict, workdir: Path, target: Path, step: int | None = None
) -> None:
    """Writes the folder `target` of a LoRA run, whole or not at all."""
    from safetensors.numpy import save_file

    if not uses_lora(config):
        raise UserError(
            f'--adapter: {workdir} is no LoRA run (lora.rank is 0): leave it out'
        )
    _, settings = load_run_tokenizer(config, workdir)
    description = describe(config, workdir, settings)
    modules = _modules(description.family, settings)
    trained, _ = load_parts(config, workdir, inference_mesh(config), step)
    tensors, targets = {}, set()
    for name, array in flatten(trained.params).items():
        parameter, factor = name.removeprefix('layers/').rsplit('/', 1)
        if parameter not in modules:
            raise UserError(
                f'--adapter: {parameter} is part of a joined or transposed matrix in '
                'this family: leave --adapter out, and the adapter is merged'
            )
        targets.add(modules[parameter].rsplit('.', 1)[1])
        for layer, matrix in enumerate(np.asarray(array)):
            rank_last = matrix.reshape(-1, config.lora.rank)
            rank_first = matrix.reshape(config.lora.rank, -1)
            written = rank_last.T if factor == 'a' else rank_first.T
            module = modules[parameter].format(layer)
            key = f'{PREFIX}{module}.lora_{factor.upper()}.weight'
            tensors[key] = np.ascontiguousarray(written)
    manifest = artifact.find_manifest(Path(config.start.run) / IMPORTED) or {}
    described = dict(
        PLAIN,
        peft_type='LORA',
        task_type='CAUSAL_LM',
        base_model_name_or_path=manifest.get('folder', config.start.run),
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        target_modules=sorted(targets),
        inference_mode=True,
    )
    with storage.writing_draft(target) as draft:
        draft.mkdir()
        save_file(tensors, draft / WEIGHTS, metadata=dict(format='pt'))
        storage.write_json(draft / CONFIG, described)
    print(f'adapter of rank {config.lora.rank} in {target}')


def import_adapter(source: Path, base: Path, workdir: Path) -> None:
    """Makes a LoRA run of the adapter on the run `base`; writes config.json last.

    Raises:
        UserError: the adapter is of another model, or has parts that we do not have.
    """
    if (workdir / 'config.json').exists():
        raise UserError(f'--workdir={workdir} is a run already: use another --workdir')
    described = _read_config(source)
    _refuse_other_base(source, described, base)
    if (pickled := source / PICKLED).exists() and not (source / WEIGHTS).exists():
        raise UserError(
            f'{pickled}: pickled weights can run code and are not read: load the '
            'adapter with peft, and save it with save_pretrained, as safetensors'
        )
    tensors = read_safetensors(source / WEIGHTS)
    config = base_config()
    start = init_from.read_start_config(base)
    config.update(model=start.model, tokenizer=start.tokenizer, chat=start.chat)
    _, settings = load_run_tokenizer(start, base)
    family = describe(start, base, settings).family
    modules = _modules(family, settings)
    for rule in family.rules(settings):
        module = rule.name.removesuffix('.weight')
        adapted = f'{PREFIX}{module.format(0)}.lora_A.weight' in tensors
        if adapted and module not in modules.values():
            raise UserError(
                f'{source} adapts {module.rsplit(".")[-1]}, which is not supported in '
                'this family: merge the adapter with peft, and import the whole model'
            )
    config.lora = _lora_section(described, tensors, modules)
    check_fields(config)
    params = _read_params(source, tensors, modules, config.lora, settings)
    config.start = ConfigDict(dict(run=str(base), step=-1))
    config.data.context = default_context(settings.context, start.data.context)
    with run_dir.locked(workdir):
        hashes = {n: storage.sha256_of_file(source / n) for n in (CONFIG, WEIGHTS)}
        config = init_from.inherit_config(config, workdir)
        artifact.build(
            workdir / IMPORTED,
            dict(hashes, dtype='float32'),
            lambda into: dict(
                folder=str(source), architecture='LoRA adapter', files=hashes
            ),
        )
        _write_checkpoint(config, workdir, params)
        run_dir.write_environment(workdir)
        run_dir.write_config(config, workdir)
    print(f'adapter of rank {config.lora.rank} in {workdir}')


def _read_config(source: Path) -> dict[str, Any]:
    described = read_json_object(source / CONFIG)
    if described.get('peft_type') != 'LORA':
        raise UserError(f'{source}/{CONFIG} does not describe a LoRA adapter')
    # The last is in new versions of peft alone, and so is not written.
    for name, plain in (PLAIN | dict(alora_invocation_tokens=None)).items():
        if described.get(name) not in (None, plain, [], {}):
            raise UserError(
                f'{source}/{CONFIG}: {name}={described[name]!r} is not supported: '
                'merge the adapter with peft, and import the whole model'
            )
    for name, kind in dict(r=int, lora_alpha=int | float).items():
        value = described.get(name)
        if not isinstance(value, kind) or value <= 0:
            raise UserError(
                f'{source}/{CONFIG}: {name}={value!r} is no number above 0: copy or '
                'download it again'
            )
    return described


def _refuse_other_base(source: Path, described: Mapping, base: Path) -> None:
    """Compares names, as an adapter fits every model of the same shapes."""
    name = described.get('base_model_name_or_path') or ''
    imported = (artifact.find_manifest(base / IMPORTED) or {}).get('folder', '')
    if imported and Path(name).name.lower() not in imported.lower():
        raise UserError(
            f'{source}/{CONFIG}: base_model_name_or_path={name}, and --base={base} was '
            f'imported from {imported}: name the run of its base model, or change this '
            'name if they are the same model'
        )


def _lora_section(described: Mapping, tensors: Mapping, modules: Mapping) -> ConfigDict:
    """The section `lora`, with the targets that the file has in the first layer."""
    rank, alpha = int(described['r']), float(described['lora_alpha'])
    if described.get('use_rslora'):  # alpha / sqrt(r)
        alpha *= math.sqrt(rank)
    targets = tuple(
        parameter.rsplit('/', 1)[1]
        for parameter, module in modules.items()
        if f'{PREFIX}{module.format(0)}.lora_A.weight' in tensors
    )
    return ConfigDict(dict(rank=rank, alpha=alpha, targets=targets))


def _read_params(source, tensors, modules, section, settings):
    """Our A and B; refuses a tensor too many, too few, or of another shape."""
    tensors, params = dict(tensors), {}
    if not section.targets:
        raise UserError(f'{source} adapts no matrix of this base model: name its base')
    for name, leaf in flatten(lora.abstract_params(settings, section)).items():
        parameter, factor = name.removeprefix('layers/').rsplit('/', 1)
        array = params[name] = np.empty(leaf.shape, np.float32)
        for layer in range(leaf.shape[0]):
            module = modules[parameter].format(layer)
            key = f'{PREFIX}{module}.lora_{factor.upper()}.weight'
            tensor = tensors.pop(key, None)
            if tensor is None:
                raise UserError(f'{source}/{WEIGHTS} lacks {key}: name its base')
            if tensor.T.size != array[layer].size or section.rank not in tensor.shape:
                raise UserError(
                    f'{source}/{WEIGHTS}: {key} is {tensor.shape}, which does not fit '
                    'the model of --base: name the run of its base model'
                )
            array[layer] = tensor.T.reshape(array[layer].shape)
    if tensors:
        raise UserError(
            f'{source}/{WEIGHTS} has an unknown tensor, {min(tensors)}: name the run '
            'of its base model'
        )
    return nest(params)


def _write_checkpoint(config: ConfigDict, workdir: Path, params) -> None:
    mesh = inference_mesh(config)
    tokenizer, model = load_run_tokenizer(config, workdir)
    identity = model_identity(tokenizer, load_base(config, mesh))
    checkpoints = Checkpoints(workdir / 'checkpoints', identity, keep=1)
    if not checkpoints.steps():
        with jax.set_mesh(mesh):
            abstract = abstract_imported(config, model, 'float32', mesh)
            put = lambda array, leaf: jax.device_put(array, leaf.sharding)
            step = put(np.zeros((), np.int32), abstract.step)
            params = jax.tree.map(put, params, abstract.params)
            state = TrainState(step, params, abstract.opt_state)
            checkpoints.save(0, state, dict(reason='imported'))
    checkpoints.close()
