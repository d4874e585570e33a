"""What the stage `report` prints: its path, the figures, the next command."""

import sys
from pathlib import Path

from gptjax.core import run_dir, storage
from gptjax.eval.report.provenance import stage_of
from gptjax.eval.report.run_report import BASELINES
from gptjax.eval.report.tables import format_number


def last_screen(workdir: Path, report: Path) -> str:
    """The lines for the terminal."""
    lines = ['', f'Made: {report}']
    evaluation = storage.read_undamaged(workdir / 'eval.json') or {}
    lines += _perplexity(evaluation) + _replies(evaluation)
    shown = _relative(workdir)
    gptjax = f'  {_relative(Path(sys.executable))} -m gptjax'
    is_reward_model = (workdir / 'ratings').is_dir()
    results = workdir / 'results.json'
    if not (results.exists() if is_reward_model else run_dir.has_checkpoint(workdir)):
        environment = storage.read_undamaged(workdir / 'environment.json') or {}
        command = f'{gptjax} {stage_of(environment)} --workdir {shown}'
        lines += ['', 'Next: train the model:', '', command]
    elif is_reward_model:
        sft, select = (_relative(workdir.parent / name) for name in ('sft', 'select'))
        lines += [
            '',
            'Next: open the report in a browser, and let the reward model choose among '
            f'the replies of a fine-tuned run, as {sft}:',
            '',
            f'{gptjax} select --config configs/select.py:reward={shown} '
            f'--workdir {select} --config.start.run={sft} '
            f'--config.task.path={sft}/dialogue',
        ]
    else:
        lines += [
            '',
            'Next: open the report in a browser, and talk to the model, in a browser '
            'too or here:',
            '',
            f'{gptjax} serve --workdir {shown}',
            f'{gptjax} chat --workdir {shown}',
        ]
    return '\n'.join(lines)


def _perplexity(evaluation):
    results = evaluation.get('results')
    if not results:
        return []
    bits = (evaluation.get('baselines') or {}).get('bits_per_byte', {})
    documents, text = results['documents'], results['bytes'] / 1e6
    return [
        '',
        f'On {documents:,} documents it never saw ({text:.2f} MB), bits per byte:',
        f'  {format_number(results["bits_per_byte"]):>6}  this model, step '
        f'{evaluation["checkpoint_step"]:,} '
        f'(context {results["context"]}, stride {results["stride"]})',
        *(
            f'  {bits[name]:6.3f}  {label}'
            for name, label in BASELINES.items()
            if bits.get(name) is not None
        ),
    ]


def _replies(evaluation):
    task = (evaluation.get('tasks') or {}).get('dialogue')
    if not task:
        return []
    figure = task['figures']['reply_bits']
    baselines = figure['baselines'].items()
    return [
        '',
        f'On {len(task["items"]):,} replies it never saw, bits per byte:',
        f'  {format_number(figure["value"]):>6}  this model, step '
        f'{evaluation["checkpoint_step"]:,}',
        *(f'  {format_number(b["value"]):>6}  {label}' for label, b in baselines),
    ]


def _relative(path: Path) -> Path:
    """The path from the current directory, if it is within it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
