"""The record of a run: one JSON object a line, and the same for TensorBoard."""

import json
import math
from pathlib import Path

from gptjax.core import storage
from gptjax.core.files import import_tensorflow


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.exists():
        return []
    # A line can be cut off anywhere, in the middle of a character too.
    lines = path.read_bytes().split(b'\n')
    return [json.loads(line) for line in lines[:-1]]


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard.

    Opened after `step` updates, it first drops the records of later ones: a run that
    goes on from a checkpoint writes them anew, so that the file reads as if it had
    never been stopped. Without `tensorboard` it imports nothing slow.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool = True):
        path = workdir / 'metrics.jsonl'
        kept = [line for line in read_metrics(path) if line['step'] <= step]
        storage.write_text(path, ''.join(_line(record) for record in kept))
        self._file = open(path, 'a', encoding='utf-8')
        self._tensorboard = None
        if tensorboard:
            import_tensorflow()  # before clu does, which would let it greet
            from clu import metric_writers

            self._tensorboard = metric_writers.SummaryWriter(
                str(workdir / 'tensorboard')
            )

    def write(self, step: int, split: str, values: dict) -> None:
        """Records `values` after `step` updates; they may be NaN."""
        self._file.write(_line(dict(step=step, split=split, **values)))
        self._file.flush()
        if self._tensorboard is not None:
            scalars = {f'{split}/{name}': value for name, value in values.items()}
            self._tensorboard.write_scalars(step, scalars)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _line(record: dict) -> str:
    # JSON has no NaN and no infinity: a reader gets null.
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(clean) + '\n'
