"""Many random kills over one run of two processes, which has to end as if undisturbed.

    python -m tests.parallel.soak FOLDER KILLS

A process is killed or stopped, or both are killed, at a random moment of a start, of a
step or of a save; the other one has to end by itself, and the same command goes on. The
command itself can be stopped: FOLDER has the number of kills so far, and more of them
can be asked for later. At the end, all losses and the final checkpoint are equal bit by
bit to those of a run without kills.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

LIMITS = dict(timeout=20, first_timeout=400, join_timeout=60)
STEPS_PER_KILL = 4
WORDS = (
    *('pretrain', '--config=configs/tiny.py', '--config.train.eval_batches=1'),
    *('--config.checkpoint.every=2', '--config.train.batch_size=4'),
    *('--config.data.context=32', '--config.train.eval_every=20'),
    *(f'--config.distributed.{name}={value}' for name, value in LIMITS.items()),
)


def main(folder: Path, kills: int) -> None:
    os.environ['GPTJAX_TESTS_COMPILED'] = str(folder / 'compiled')
    from tests import runs

    folder.mkdir(parents=True, exist_ok=True)
    state_path, whole, run = folder / 'kills.json', folder / 'whole', folder / 'run'
    state = dict(kills=0, starts=0, steps=STEPS_PER_KILL * kills, seconds=0.0)
    if state_path.exists():
        state = json.loads(state_path.read_text())
    words = (*WORDS, f'--config.train.num_steps={state["steps"]}')
    start = lambda workdir: runs.start_cluster(
        (*words, f'--workdir={workdir}'), devices=1
    )
    if not (folder / 'whole-ended').exists():
        for process in start(whole):
            runs.finish(process)
        (folder / 'whole-ended').touch()
    if not run.exists():
        skipped = shutil.ignore_patterns('checkpoints', 'metrics.jsonl', 'tensorboard')
        shutil.copytree(whole, run, ignore=skipped)

    while True:
        state['starts'] += 1
        rng = random.Random(state['starts'])
        processes = start(run)
        if state['kills'] == kills:
            for process in processes:
                runs.finish(process)
            break
        if not wait(run, processes, rng):
            continue  # it has ended before the kill
        victims, seconds = kill(processes, rng)
        state['kills'] += 1
        state['seconds'] = max(state['seconds'], seconds)
        state_path.write_text(json.dumps(state))
        print(f'{state["kills"]}: {victims}, after {seconds:.0f} s', flush=True)

    assert runs.records(run) == runs.records(whole), 'other losses'
    assert checksums(run) == checksums(whole), 'another checkpoint'
    print(
        f'{kills} kills in {state["starts"]} starts of {state["steps"]} steps: equal '
        f'bit by bit; the other process ended within {state["seconds"]:.0f} s'
    )


def wait(run: Path, processes, rng) -> bool:
    """Waits for a random moment; whether both processes still run."""
    began = time.monotonic()
    if rng.random() < 0.2:  # while it starts, joins, restores or compiles
        limit = began + 20 * rng.random()
        ready = lambda: time.monotonic() > limit
    else:
        # A restart writes the metrics after the checkpoint again.
        more = rng.randint(1, 2 * STEPS_PER_KILL)
        newest = max(
            [int(p.name) for p in (run / 'checkpoints').glob('[0-9]' * 8)] + [0]
        )
        ready = lambda: last_step(run, began_after=began) >= newest + more
    while not ready():
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.05)
    time.sleep(0.3 * rng.random())
    if all(process.poll() is None for process in processes):
        return True
    # On a busy machine a start may be too slow for `first_timeout`.
    for process in processes:
        output, errors = process.communicate(timeout=500)
        assert process.returncode in (0, 76, -6), f'{output}\n{errors}'
    return False


def last_step(run: Path, began_after: float) -> int:
    """The step of the newest line in metrics.jsonl, if it was written since then."""
    path = run / 'metrics.jsonl'
    age = time.monotonic() - began_after
    if not path.exists() or time.time() - path.stat().st_mtime > age:
        return -1
    lines = path.read_bytes().split(b'\n')
    return json.loads(lines[-2])['step'] if len(lines) > 1 else -1


def kill(processes: list[subprocess.Popen], rng) -> tuple[str, float]:
    """(what was done, seconds until the others had ended)."""
    victims = rng.choice(((0,), (1,), (0, 1)))
    stop = victims != (0, 1) and rng.random() < 0.2
    began = time.monotonic()
    for victim in victims:
        processes[victim].send_signal(19 if stop else 9)
    for number, process in enumerate(processes):
        if number not in victims:
            _, errors = process.communicate(timeout=900)
            assert process.returncode not in (0, 75), errors
    seconds = time.monotonic() - began
    for victim in victims:
        processes[victim].kill()
        processes[victim].communicate()
    name = 'stopped' if stop else 'killed'
    return f'process {" and ".join(map(str, victims))} {name}', seconds


def checksums(run: Path) -> dict:
    """Of all arrays of the newest checkpoint."""
    folder = sorted((run / 'checkpoints').glob('[0-9]' * 8))[-1]
    [path] = [p for p in (folder / 'record').iterdir() if p.name == 'metadata']
    return json.loads(path.read_text())['checksums']


if __name__ == '__main__':
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
