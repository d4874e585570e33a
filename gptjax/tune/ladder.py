"""A ladder: small runs of a config's model family, at several sizes and FLOPs.

The config describes the large run. The ladder is an IsoFLOP grid (Hoffmann et al. 2022,
approach 2): its largest budget is a tenth of the large run's FLOPs, and each budget is
spread over models around the size N_b that has as many tokens a parameter as the large
run,

    N_b = N sqrt(C_b / C).

Parameters N are those of matrix products: the layers and the output head, but not the
input embedding, which is a lookup (Porian et al. 2024 reconcile Kaplan with Hoffmann
this way). FLOPs C are those of `train_flops_per_token`.

What differs from the large run: the number of heads, of a fixed size, and with it
width, feed-forward size and number of layers; the number of steps, and with it the
length of the schedule; `optim.learning_rate`, which is multiplied by
sqrt(large width / width), as in configs/depth.py, unless muP takes care. Batch size,
context, data and tokenizer stay.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptjax.core import artifact, run_dir, storage
from gptjax.core.config import complete
from gptjax.core.console import UserError
from gptjax.models import parameter_count, settings
from gptjax.train.metrics import read_metrics
from gptjax.tune.trial_run import Training

BUDGETS = (1 / 62.5, 1 / 25, 1 / 10)  # of the large run's FLOPs
SIZES = (0.4, 0.63, 1.0, 1.6, 2.5)  # of N_b
LEAST_SIZES = 3  # in a budget: a parabola has three coefficients
LEAST_STEPS = 10


class Rung(NamedTuple):
    """One run: the fields that differ from the config, and its size.

    parameters: N. tokens: D, that it is trained on. flops: C.
    budget: place in BUDGETS; -1: the large run.
    """

    values: dict
    steps: int
    parameters: int
    tokens: int
    flops: float
    budget: int = -1

    def describe(self) -> str:
        return (
            f'{self.parameters / 1e6:.3f}M parameters, {self.tokens / 1e6:.3f}M '
            f'tokens, {self.flops:.2e} FLOPs'
        )


def make_large(config: ConfigDict) -> Rung:
    """The large run: the config, validated on the whole validation set."""
    same = {'train.eval_batches': 0, 'train.patience': 0}
    return _measure(config, same, config.train.num_steps)


def make_ladder(config: ConfigDict) -> list[Rung]:
    """The rungs by budget and size; UserError if the config has too few sizes."""
    large = make_large(config)
    models = _smaller_models(config)
    ladder = []
    for place, share in enumerate(BUDGETS):
        flops, centre = large.flops * share, large.parameters * share**0.5
        # Several wanted sizes may have the same nearest model.
        heads_of = [_nearest(models, size * centre) for size in SIZES]
        chosen = {heads: models[heads] for heads in heads_of}
        if len(chosen) < LEAST_SIZES:
            heads = config.model.num_heads
            raise UserError(
                f'model.num_heads={heads}: widths are multiples of a head, which gives '
                f'{len(chosen)} sizes around {centre / 1e6:.3f}M parameters, and a '
                f'budget needs {LEAST_SIZES}: use more heads, e.g. {3 * heads}'
            )
        for heads in sorted(chosen):
            tokens = flops / chosen[heads].flops * chosen[heads].tokens
            steps = round(tokens / (config.train.batch_size * config.data.context))
            if steps < LEAST_STEPS:
                raise UserError(
                    f'train.num_steps={config.train.num_steps}: a run of the ladder '
                    f'would have {steps} steps, and needs {LEAST_STEPS}: use at least '
                    f'{math.ceil(config.train.num_steps * LEAST_STEPS / max(steps, 1))}'
                )
            values = chosen[heads].values | _shorten(config, steps)
            rung = _measure(config, values, steps)
            ladder.append(rung._replace(budget=place))
    return ladder


def _nearest(models: dict[int, Rung], parameters: float) -> int:
    """The number of heads of the model with the nearest size, by ratio."""
    ratio = lambda heads: abs(math.log(models[heads].parameters / parameters))
    return min(models, key=ratio)


def _smaller_models(config: ConfigDict) -> dict[int, Rung]:
    """By the number of heads: the config with a model of this many heads."""
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    group, models = model.num_heads // model.num_kv_heads, {}
    for heads in range(group, model.num_heads + 1, group):
        share = heads / model.num_heads
        if model.width * heads % model.num_heads:
            continue
        width = model.width * heads // model.num_heads
        # One layer cannot read what a layer before it has found in other positions.
        layers = max(min(2, model.num_layers), round(model.num_layers * share))
        values = {
            'model.num_heads': heads,
            'model.num_kv_heads': heads // group,
            'model.width': width,
            'model.head_dim': model.head_dim,
            'model.num_layers': layers,
            'model.unroll': min(config.model.unroll, layers),
        }
        if config.optim.parametrization == 'standard':
            rate = config.optim.learning_rate * share**-0.5
            values['optim.learning_rate'] = rate
        if config.model.mlp_width:
            values['model.mlp_width'] = max(1, round(model.mlp_width * share))
        models[heads] = _measure(config, values, config.train.num_steps)
    return models


def _shorten(config: ConfigDict, steps: int) -> dict:
    """The fields of a run of so many steps, which is validated at its end."""
    return {
        'train.num_steps': steps,
        # A warm-up as long as the large run's would be most of a short run.
        'optim.warmup_steps': min(config.optim.warmup_steps, steps // 10),
        'train.eval_every': steps,
        'train.eval_batches': 0,
        'train.patience': 0,
        'checkpoint.keep': 1,
        'checkpoint.keep_best': 0,
    }


def _measure(config: ConfigDict, values: dict, steps: int) -> Rung:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(values)
    model = settings.resolve(changed.model, changed.tokenizer.vocab_size)
    context = changed.data.context
    tokens = steps * changed.train.batch_size * context
    flops = tokens * parameter_count.train_flops_per_token(model, context)[0]
    parameters = parameter_count.matrix_params(model)
    return Rung(values, steps, parameters, tokens, flops)


# ---- training


def train_ladder(
    rungs: Sequence[Rung], workdir: Path, training: Training
) -> tuple[list[float], dict | None]:
    """(the loss of each rung, None), or a summary of the run that a signal ended."""
    losses = []
    for number, rung in enumerate(rungs):
        name = f'{number:02}'
        loss, summary = train_run(rung, workdir / 'runs' / name, training)
        if summary:
            return losses, summary
        losses.append(loss)
    return losses, None


def train_run(
    rung: Rung, folder: Path, training: Training
) -> tuple[float, dict | None]:
    """(its validation loss after the last step, None); a run that has ended stays.

    A run that a signal ended gives (nan, its summary).
    """
    name = f'run {folder.name} ({rung.describe()})'
    loss = read_final_loss(folder, rung.steps)
    if loss is None:
        print(f'{name} in {folder}')
        config = training.prepare(rung.values, folder)
        fields = [f'--config.{field}={value}' for field, value in rung.values.items()]
        words = ['pretrain', *training.words, *fields, f'--workdir={folder}']
        others = lambda: sorted(folder.parent.glob('[0-9]*'))
        with run_dir.written_as(words), artifact.sharing(others):
            summary = training.train(config, folder, contextlib.nullcontext())
        if summary['reason'] == 'interrupted':
            return math.nan, summary
        jax.clear_caches()  # a run's programs are of no use to the next one
        loss = read_final_loss(folder, rung.steps)
    if loss is None or not math.isfinite(loss):
        raise UserError(
            f'{folder}: its last validation loss is not finite: use a lower '
            'optim.learning_rate, and another --workdir'
        )
    print(f'{name}: loss {loss:.4f}')
    return loss, None


def read_final_loss(folder: Path, steps: int) -> float | None:
    """The validation loss, nats a token, after the last step; None before."""
    for record in read_metrics(folder / 'metrics.jsonl'):
        if record['split'] == 'validation' and record['step'] == steps:
            return math.nan if record['loss'] is None else record['loss']
    return None


def open_ladder(config: ConfigDict, workdir: Path) -> list[Rung]:
    """The ladder of RUN, new or continued: RUN/ladder.json says whose it is.

    Raises UserError if RUN holds something else.
    """
    if (workdir / 'config.json').exists() or (workdir / 'study.json').exists():
        raise UserError(
            f'--workdir={workdir} is a run or a study, not a ladder: use another '
            '--workdir'
        )
    ladder = make_ladder(config)
    definition = dict(
        config=run_dir.to_json(config), rungs=[rung._asdict() for rung in ladder]
    )
    path = workdir / 'ladder.json'
    if not path.exists():
        storage.write_json(path, definition)
        return ladder
    known = storage.parse_undamaged(path.read_bytes())
    if known is None or not known.keys() >= {'config', 'rungs'}:
        raise UserError(f'{path} is damaged: delete it, and it is written again')
    # Fields that an older version did not have.
    known['config'] = run_dir.to_json(run_dir.from_json(complete(known['config'])))
    for name, old, new in run_dir.differences(known, definition):
        raise UserError(
            f'--workdir={workdir} holds another ladder ({name}: {old!r} there, {new!r} '
            'here): use another --workdir'
        )
    return ladder
