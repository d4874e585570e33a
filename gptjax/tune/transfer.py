"""The stage `transfer`: learning rates over widths, with and without muP.

    RUN/trials/000, …      a study (study.py): parametrisation x width x learning rate
    RUN/transfer.json      the loss of each trial, the best learning rate of each width
    RUN/report.html        these, and the coordinate check (coordinates.py), as charts

Heads keep their size, and their number and the feed-forward size grow with the width.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.dataloader import training_batches
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.templates import render
from gptjax.models import settings
from gptjax.optim.parametrization import check_parametrization
from gptjax.tune.coordinates import measure_changes, measure_slope
from gptjax.tune.search_space import Dimension
from gptjax.tune.study import trial_folder
from gptjax.tune.trial_run import Options

RATES = ('optim.learning_rate', 'optim.matrix_learning_rate')
PARAMETRIZATIONS = dict(standard='Standard', mup='μP')
GROWING = ('num_heads', 'num_kv_heads', 'mlp_width')
COORDINATE_STEPS = 10


def make_options(dimensions: Sequence[Dimension], space: str) -> Options:
    """The study of --space, which has widths and a learning rate."""
    by_field = {dimension.field: dimension for dimension in dimensions}
    width, *rates = by_field.get('model.width'), *(by_field.keys() & {*RATES})
    if width is None or width.kind != 'choice' or len(by_field) != 2 or not rates:
        raise UserError(
            f'--space={space}: use widths and a learning rate, e.g. "model.width='
            'choice(32,64,128); optim.learning_rate=log(1e-3,1e-1,7)"'
        )
    parametrization = Dimension('optim.parametrization', 'choice', (*PARAMETRIZATIONS,))
    dimensions = [parametrization, width, by_field[rates[0]]]
    return Options(
        stage='pretrain',
        space=space.strip(),
        dimensions=dimensions,
        num_trials=math.prod(len(d.grid()) for d in dimensions),
        sampler='grid',
        pruner='none',
        objectives=('loss',),
    )


def make_derive(base: ConfigDict, widths: Sequence[int]) -> Callable[[dict], dict]:
    """`derive` of `Training`: the sizes that grow with the width, and the base width.

    Raises UserError for a width with a share of a head, and for what muP refuses.
    """
    if 'start' in base:
        raise UserError(
            f'start.run={base.start.run}: widths are those of new models: use a config '
            'without the section `start`'
        )
    model = settings.resolve(base.model, base.tokenizer.vocab_size)
    least = math.lcm(*(model.width // math.gcd(model.width, model[n]) for n in GROWING))
    for width in widths:
        if width % least:
            raise UserError(
                f'--space: model.width={width}: heads of {model.head_dim} and '
                f'model.num_kv_heads={model.num_kv_heads} need multiples of {least}'
            )
    base_width = base.optim.base_width or min(widths)
    config = base.copy_and_resolve_references()
    config.optim.update(dict(parametrization='mup', base_width=base_width))
    check_parametrization(config)

    def derive(values):
        width = values['model.width']
        sizes = {f'model.{n}': model[n] * width // model.width for n in GROWING}
        fixed = {'model.head_dim': model.head_dim, 'optim.base_width': base_width}
        return values | sizes | fixed

    return derive


def describe_transfer(study: optuna.Study, options: Options, workdir: Path) -> str:
    """Writes RUN/transfer.json; returns a line for each best learning rate."""
    field = options.dimensions[-1].field
    trials = [
        dict(
            parametrization=trial.params['optim.parametrization'],
            width=trial.params['model.width'],
            learning_rate=trial.params[field],
            loss=trial.values[0],
            trial=trial.number,
        )
        for trial in study.trials
        if trial.state == TrialState.COMPLETE
    ]
    best = {}
    for trial in sorted(trials, key=lambda trial: trial['loss'], reverse=True):
        best[trial['parametrization'], trial['width']] = trial
    best = sorted(
        best.values(), key=lambda t: (t['parametrization'] == 'mup', t['width'])
    )
    storage.write_json(
        workdir / 'transfer.json', dict(field=field, best=best, trials=trials)
    )
    ends = options.dimensions[-1].values
    return '\n'.join(
        f'{t["parametrization"]:8}  width {t["width"]:4}: {field}='
        f'{t["learning_rate"]:.4g}, loss {t["loss"]:.4f}'
        + (' (at an end of the range)' if t['learning_rate'] in ends else '')
        for t in best
    )


def check_coordinates(
    with_values: Callable[[dict], ConfigDict], derive: Callable, workdir: Path
) -> None:
    """Adds the coordinate check to transfer.json, and writes RUN/report.html.

    with_values: from values by field to a config.

    All models have the best learning rate of the narrowest one, without a warm-up.
    """
    results = storage.read_json(workdir / 'transfer.json')
    widths = sorted({trial['width'] for trial in results['trials']})
    rate = results['best'][0]['learning_rate']
    prepared = trial_folder(workdir, results['trials'][0]['trial']) / 'prepared'
    results['coordinates'] = {}
    for parametrization in PARAMETRIZATIONS:
        changes = []
        for width in widths:
            values = {
                'optim.parametrization': parametrization,
                'model.width': width,
                results['field']: rate,
                'optim.schedule': 'constant',
                'optim.warmup_steps': 0,
            }
            config = with_values(derive(values))
            batches = training_batches(
                PackedDataset(prepared, 'train'), config.seed, config.train.batch_size
            )
            changes.append(measure_changes(config, batches, COORDINATE_STEPS))
        slopes = [
            measure_slope(widths, column) for column in zip(*changes, strict=True)
        ]
        results['coordinates'][parametrization] = dict(changes=changes, slopes=slopes)
        print(
            f'{parametrization:8}  after {COORDINATE_STEPS} steps the last block moved '
            f'~ width^{slopes[-2]:.2f}, logits ~ width^{slopes[-1]:.2f}'
        )
    storage.write_json(workdir / 'transfer.json', results)
    storage.write_text(workdir / 'report.html', build_page(workdir.name, results, rate))
    print(f'Made: {workdir / "report.html"}')


def build_page(name: str, results: dict, rate: float) -> str:
    """HTML of the charts."""
    widths = sorted({trial['width'] for trial in results['trials']})
    losses, coordinates, best = [], [], []
    for key, title in PARAMETRIZATIONS.items():
        lines = []
        for number, width in enumerate(widths):
            points = sorted(
                (math.log10(t['learning_rate']), t['loss'])
                for t in results['trials']
                if (t['parametrization'], t['width']) == (key, width)
            )
            lines.append(Series(f'width {width}', f'run{number % 8}', points))
        unit = 'validation loss by log₁₀ of the learning rate'
        losses.append(charts.line_chart(title, unit, lines, across='log₁₀'))
        points = [
            (math.log2(t['width'] / widths[0]), t['learning_rate'])
            for t in results['best']
            if t['parametrization'] == key
        ]
        best.append(Series(title, 'validation' if key == 'mup' else 'main', points))
        *blocks, logits = zip(*results['coordinates'][key]['changes'], strict=True)
        place = lambda column: [
            (math.log2(width / widths[0]), value)
            for width, value in zip(widths, column, strict=True)
        ]
        lines = [
            *(Series('', 'quiet', place(block)) for block in blocks[:-1]),
            Series('last block', 'main', place(blocks[-1])),
            Series('logits', 'validation', place(logits)),
        ]
        coordinates.append(
            charts.line_chart(
                f'{title}: coordinate check',
                f'mean |x − x₀| after {COORDINATE_STEPS} steps',
                lines,
                make_axis=charts.log_axis,
                across='log₂',
            )
        )
    optimum = charts.line_chart(
        'Best learning rate', 'by log₂ of the width', best,
        make_axis=charts.log_axis, across='log₂',
    )  # fmt: skip
    return render(
        'tuning.html.j2',
        title=f'{name}: learning rates over widths',
        charts=[*losses, *coordinates, optimum],
        note=f'Widths are {", ".join(map(str, widths))}; on the axis log₂, 0 is the '
        f'first. The learning rate is {results["field"]}; in the coordinate check all '
        f'models have {rate:.3g}. Losses are the lowest of each run, on the '
        'validation batches of training.',
        heading=['', 'width', 'best learning rate', 'validation loss'],
        rows=[
            [
                *(PARAMETRIZATIONS[t['parametrization']], str(t['width'])),
                *(f'{t["learning_rate"]:.3g}', f'{t["loss"]:.4f}'),
            ]
            for t in results['best']
        ],
    )
