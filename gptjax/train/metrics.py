"""The metrics of a run, as JSON Lines and for TensorBoard."""

import json
import math
import sys
from pathlib import Path

from gptjax.core import storage
from gptjax.core.files import import_tensorflow


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, without a last line that is incomplete.

    Other lines that are damaged are skipped, and a message says how many.
    """
    if not path.exists():
        return []
    # Bytes, because a killed run may have stopped in the middle of a character.
    lines = path.read_bytes().split(b'\n')[:-1]
    values = [storage.parse_undamaged(line) for line in lines]
    records = [value for value in values if value and {'step', 'split'} <= {*value}]
    if num_damaged := len(lines) - len(records):
        print(f'{path}: damaged lines skipped: {num_damaged}', file=sys.stderr)
    return records


class MetricsWriter:
    """Appends to RUN/metrics.jsonl and RUN/tensorboard.

    First it removes the records after `step`, because a resumed run writes these again:
    the file is the same as that of a run without interruption. With
    tensorboard=False, TensorFlow is not imported.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool = True):
        path = workdir / 'metrics.jsonl'
        kept = [line for line in read_metrics(path) if line['step'] <= step]
        storage.write_text(path, ''.join(_line(record) for record in kept))
        self._file = open(path, 'a', encoding='utf-8')
        self._tensorboard = None
        if tensorboard:
            import_tensorflow()  # without the messages that it prints if clu imports it
            from clu import metric_writers

            self._tensorboard = metric_writers.SummaryWriter(
                str(workdir / 'tensorboard')
            )

    def write(self, step: int, split: str, values: dict) -> None:
        """Writes the values of a step to the split 'train' or 'validation'."""
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
    # JSON has no NaN and no infinity: they become null.
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(clean) + '\n'
