"""Loads a trained model, or an inference engine for it, from a run directory."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import artifact, run_dir, storage
from gptjax.core.config import default_context
from gptjax.core.console import UserError
from gptjax.core.model_schema import LATER, MODEL
from gptjax.infer.engine import Engine
from gptjax.infer.quantize import cast_params, quantize_params
from gptjax.models import gpt, heads, lora, settings
from gptjax.models.cache import empty_cache, empty_int8_cache
from gptjax.optim.optimizer import ema_params, make_optimizer
from gptjax.parallel.mesh import make_mesh
from gptjax.tokenizer.load_tokenizer import (
    AnyTokenizer,
    find_tokenizer,
    load_tokenizer,
)
from gptjax.train.checkpoint import Checkpoints, checksums
from gptjax.train.state import abstract_state

IMPORTED = 'imported'  # the folder of a run that the stage `import` made


class Trained(NamedTuple):
    """A model, its tokenizer, and the step of its checkpoint."""

    settings: FrozenConfigDict
    params: Any
    tokenizer: AnyTokenizer
    step: int


def load_run_tokenizer(
    config: ConfigDict, workdir: Path
) -> tuple[AnyTokenizer, FrozenConfigDict]:
    """RUN's tokenizer, and the settings of a model with its vocabulary."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    return tokenizer, settings.resolve(config.model, tokenizer.vocab_size)


def load_model(
    config: ConfigDict, workdir: Path, mesh: Mesh, step: int | None = None
) -> Trained:
    """The model of a checkpoint: of `step`, or with the lowest loss, or the newest.

    The weights are the moving average if `optim.ema` is on. The weights of a LoRA run
    are merged into those of `start.run`. They are float32, except in imported runs.
    """
    trained, base = load_parts(config, workdir, mesh, step)
    if base is None:
        return trained
    params = merge_lora(config, base.params, trained.params, mesh)
    return trained._replace(params=params)


def load_parts(
    config: ConfigDict, workdir: Path, mesh: Mesh, step: int | None = None
) -> tuple[Trained, Trained | None]:
    """`load_model` before merging: (what RUN trained, LoRA's frozen model or None)."""
    folder = workdir / 'checkpoints'
    if not folder.is_dir() or find_tokenizer(workdir / 'tokenizer') is None:
        raise UserError(
            f'--workdir={workdir} has no checkpoint: run the stage pretrain first'
        )
    if (workdir / 'ratings').is_dir():
        raise UserError(
            f'--workdir={workdir} is a reward model, which writes no text: use another '
            'run. The stage `reward` prints its accuracy and saves it in '
            f'{workdir}/results.json, and `report` shows it'
        )
    tokenizer, model = load_run_tokenizer(config, workdir)
    base = load_base(config, mesh)
    with jax.set_mesh(mesh):
        imported = artifact.find_manifest(workdir / IMPORTED)
        if imported is not None:
            dtype = imported['settings']['dtype']
            abstract = abstract_imported(config, model, dtype, mesh)
        else:
            shapes, axes = trained_shapes(config, model)
            optimizer = make_optimizer(config, shapes)
            abstract = abstract_state(shapes, optimizer, axes, mesh)
        checkpoints = Checkpoints(
            folder, model_identity(tokenizer, base), read_only=True
        )
        if step is not None and step not in checkpoints.steps():
            steps = ', '.join(map(str, checkpoints.steps()))
            raise UserError(f'{folder} has no checkpoint {step}: use one of {steps}')
        chosen = checkpoints.best_step() if step is None else step
        restored = checkpoints.restore(abstract, chosen, select=_step_and_weights)
        checkpoints.close()
    if restored is None:
        raise UserError(f'{folder} is empty: run the stage pretrain first')
    trained_step, params = restored[0]
    return Trained(model, params, tokenizer, int(trained_step)), base


def abstract_imported(
    config: ConfigDict, model: FrozenConfigDict, dtype: str, mesh: Mesh
):
    """The state of an imported run: weights in `dtype`, and no optimizer's state."""
    shapes, axes = trained_shapes(config, model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return abstract_state(shapes, optax.identity(), axes, mesh)


def _step_and_weights(state):
    """The arrays of a training state that inference needs: about a third of them."""
    return state.step, heads.without_critic(ema_params(state.opt_state, state.params))


def load_start_run(start: ConfigDict, mesh: Mesh) -> Trained:
    """The model of `start.run` at the checkpoint `start.step`."""
    run = Path(start.run)
    try:
        return load_model(run_dir.read_config(run), run, mesh, start.step)
    except UserError as error:
        raise UserError(f'start.run={run}: {error}') from error


def uses_lora(config: ConfigDict) -> bool:
    return 'lora' in config and config.lora.rank != 0


def load_base(config: ConfigDict, mesh: Mesh) -> Trained | None:
    """The frozen model under LoRA; None if all parameters are trained."""
    return load_start_run(config.start, mesh) if uses_lora(config) else None


def model_identity(tokenizer: AnyTokenizer, base: Trained | None) -> dict[str, str]:
    """`Checkpoints.identity`: hashes of the tokenizer and of LoRA's frozen model."""
    identity = dict(tokenizer=tokenizer.fingerprint)
    return identity if base is None else dict(identity, start=model_fingerprint(base))


def trained_shapes(config: ConfigDict, model: FrozenConfigDict) -> tuple:
    """(shapes, axes) of the trained parameters."""
    if uses_lora(config):
        shapes = lora.abstract_params(model, config.lora)
        axes = lora.param_axes(model, config.lora)
    else:
        shapes, axes = gpt.abstract_params(model), gpt.param_axes(model)
    if 'ppo' in config:
        return heads.with_critic(model, config.ppo.critic, shapes, axes)
    return shapes, axes


def merge_lora(config: ConfigDict, base, params, mesh: Mesh):
    """The base weights w replaced by w + alpha / rank A B, with the same sharding."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
    merge = jax.jit(
        lambda base, params: lora.merge(base, params, lora.lora_scale(config.lora)),
        out_shardings=shardings,
    )
    with jax.set_mesh(mesh):
        return merge(base, params)


WEIGHTS = dict(whole=lambda params: params, int8=quantize_params)
CACHES = dict(whole=empty_cache, int8=empty_int8_cache)


def load_engine(
    config: ConfigDict,
    workdir: Path,
    step: int | None = None,
    *,
    context: int | None = None,
    weights: str = 'whole',
    cache: str = 'whole',
    draft: Path | None = None,
    **options,
) -> Engine:
    """An engine for a checkpoint, which is chosen as in `load_model`.

    Args:
        context: the most tokens of a prompt and its reply; None: `default_context`
            after training with `data.context`.
        weights: 'whole' (the model's dtype), or 'int8'.
        cache: of keys and values: 'whole' or 'int8'.
        draft: the run of a smaller model with the same tokenizer, for speculative
            decoding.
        options: further arguments of `Engine`.
    """
    for name, value, known in (('weights', weights, WEIGHTS), ('cache', cache, CACHES)):
        if value not in known:
            raise UserError(f'--{name}={value}: use one of {", ".join(known)}')
    mesh = inference_mesh(config)
    trained = load_model(config, workdir, mesh, step)
    trained_fingerprint = model_fingerprint(trained)
    identity = [trained_fingerprint, weights, cache]
    dtype = jnp.dtype(trained.settings.dtype)
    if draft is not None:
        draft_model = load_draft(draft, mesh, trained.tokenizer)
        options['draft'] = draft_model.settings, draft_model.params
        # Both models are cast to the same dtype: the wider of the two.
        dtype = jnp.promote_types(dtype, draft_model.settings.dtype)
        # With a draft model the same seed gives another reply.
        identity += [model_fingerprint(draft_model), options.get('guesses')]
    longest = trained.settings.context
    if context is None:
        context = default_context(longest, config.data.context)
    if context < longest:  # replies end earlier
        identity.append(context)
    return Engine(
        trained.settings,
        trained.params,
        trained.tokenizer,
        context=context,
        fingerprint=storage.fingerprint(identity),
        trained_step=trained.step,
        trained_fingerprint=trained_fingerprint,
        convert=lambda params: cast_params(WEIGHTS[weights](params), dtype),
        new_cache=CACHES[cache],
        **options,
    )


def load_draft(workdir: Path, mesh: Mesh, tokenizer: AnyTokenizer) -> Trained:
    """The draft model of speculative decoding.

    Raises:
        UserError: it has another tokenizer, or no checkpoint.
    """
    path = find_tokenizer(workdir / 'tokenizer')
    if path and load_tokenizer(path.parent).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f'--draft={workdir} was trained with another tokenizer: copy the folders '
            'documents, tokenizer and prepared of --workdir, and train the draft on '
            'them'
        )
    try:
        return load_model(run_dir.read_config(workdir), workdir, mesh)
    except UserError as error:
        raise UserError(f'--draft={workdir}: {error}') from error


def model_fingerprint(trained: Trained) -> str:
    """A hash of the settings, weights and tokenizer."""
    settings = {
        name: value
        for name, value in trained.settings.items()
        if not (name in LATER and value == MODEL[name].default)
    }
    parts = [settings, checksums(trained.params), trained.tokenizer.fingerprint]
    return storage.fingerprint(parts)


def inference_mesh(config: ConfigDict) -> Mesh:
    """A mesh with the tensor axis alone, or of one device if there are too few.

    With several processes, each process has one on its own devices.
    """
    devices = jax.local_devices()
    tensor = len(devices) if config.mesh.tensor == -1 else config.mesh.tensor
    tensor = tensor if tensor <= len(devices) else 1
    sizes = ConfigDict(dict(data=1, fsdp=1, tensor=tensor, context=1))
    return make_mesh(sizes, devices[:tensor])
