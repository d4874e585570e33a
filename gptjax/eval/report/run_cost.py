"""What the training of a run cost by its metrics: time, tokens, FLOPs, energy."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.models.parameter_count import train_flops_per_token
from gptjax.train.load_model import load_run_tokenizer
from gptjax.train.metrics import read_metrics


class Cost(NamedTuple):
    """None: the metrics do not say.

    tokens: that the loss was computed on.
    flops: of the model, for all tokens of the batches, also those without loss;
        recomputation is not counted.
    joules: measured while the run trained.
    """

    updates: int
    seconds: float
    tokens: float | None
    flops: float | None
    joules: float | None


def measure_cost(config: ConfigDict, workdir: Path) -> Cost:
    """The cost of all updates of RUN, without validation."""
    records = [
        record
        for record in read_metrics(workdir / 'metrics.jsonl')
        if record['split'] == 'train'
    ]

    def total(name):
        values = [record.get(name) for record in records]
        return sum(values) if values and None not in values else None

    tokens, flops = total('tokens'), None
    # Stages whose updates are one forward and one backward pass write a throughput.
    if tokens and total('tokens_per_second'):
        _, settings = load_run_tokenizer(config, workdir)
        _, full = train_flops_per_token(settings, config.data.context)
        inputs = len(records) * config.train.batch_size * config.data.context
        flops = max(inputs, tokens) * full  # `tokens` of a pair is two rows
    seconds = total('step_seconds') or 0.0
    return Cost(len(records), seconds, tokens, flops, total('joules'))


def format_seconds(seconds: float) -> str:
    """75 → '75 s', 500 → '8.3 min', 9000 → '2.5 h'."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.1f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
