"""Where each process of a run is, in RUN/.processes/NUMBER.json, for who waits for it.

    {"step": 12, "name": "the update", "count": 41, "beat": 7, "ended": ""}

`count` counts the places that the process has passed, in the same order in every
process. `beat` grows every few seconds, so that a file that stays as it is belongs to a
process that has died or is stopped; no clocks are compared.

As a program, this file prints the last words of a process that was killed, or that JAX
has aborted, so it imports nothing of the package.
"""

import json
import os
import sys
import time
from pathlib import Path

FOLDER = '.processes'
BEATS = 3  # without a new one, a process has died


def write_place(folder: Path, number: int, place: dict) -> None:
    folder.mkdir(exist_ok=True)
    draft = folder / f'{number}.draft'
    draft.write_text(json.dumps(place))
    draft.replace(folder / f'{number}.json')


def read_place(folder: Path, number: int) -> dict | None:
    try:
        return json.loads((folder / f'{number}.json').read_text())
    except (OSError, ValueError):
        return None


def remove_place(folder: Path, number: int) -> None:
    """Removes the file of a process, and the folder with the last one."""
    (folder / f'{number}.json').unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        pass


def find_missing(folder: Path, number: int, total: int, beat: float) -> list[str]:
    """A line for each other process that is dead, stopped, or behind this one.

    It takes BEATS times `beat` seconds.
    """
    own = read_place(folder, number) or {'count': 0}
    others = [other for other in range(total) if other != number]
    before = [read_place(folder, other) for other in others]
    time.sleep(BEATS * beat)
    lines = []
    for other, earlier in zip(others, before, strict=True):
        place = read_place(folder, other)
        if place is None:
            lines.append(f'process {other} is missing: it has not begun, or has ended')
        elif place['ended']:
            lines.append(f'process {other} ended {_where(place)}: {place["ended"]}')
        elif place == earlier:
            lines.append(
                f'process {other} is missing: it has died or is stopped {_where(place)}'
            )
        elif place['count'] < own['count']:
            lines.append(f'process {other} is missing: it is still {_where(place)}')
    return lines


def _where(place: dict) -> str:
    return f'at step {place["step"]}, in {place["name"]}'


def print_last_words(folder: str, number: str, total: str, beat: str) -> None:
    """Reads a place per line; if the last one is not 'end', the process was killed."""
    last = ''
    for line in sys.stdin:
        last = line.strip()
    if last == 'end':
        return
    print(f'process {number} was ended {last}', file=sys.stderr, flush=True)
    lines = find_missing(Path(folder), int(number), int(total), float(beat))
    print('\n'.join(lines), file=sys.stderr, flush=True)


if __name__ == '__main__':
    os.nice(5)
    print_last_words(*sys.argv[1:])
