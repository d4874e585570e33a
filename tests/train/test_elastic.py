"""1, 2 and 4 processes train on the same batches, and each reads only its rows."""

import json

import jax
import numpy as np
import pytest

from gptjax.core import run_dir
from gptjax.parallel.mesh import make_mesh
from gptjax.train.load_model import load_model
from tests import runs
from tests.train.test_resume import lines_of, wait_until

# Packed rows of two mixed and filtered sources.
CONFIG = """
from configs import common, tiny
def get_config():
    config = tiny.get_config()
    config.data.sources.chitchat.update(limit=200, weight=0.7)
    config.data.sources.plain = common.source('jsonl', {path!r}, weight=0.3)
    config.data.clean += ('drop_long',)
    config.data.max_characters = 4000
    config.train.update(num_steps=8, batch_size=8, eval_every=4, eval_batches=1)
    config.checkpoint.every = 4
    config.optim.warmup_steps = 0
    return config
"""
# A file for each process and start: (step, the rows that were loaded, {row: checksum}).
RECORD = """
import json, zlib
from pathlib import Path
import numpy as np
from gptjax.data import dataloader
make, place, loaded = dataloader.training_batches, dataloader.place_batch, []
def recorded_place(batch, rows, *others):
    loaded.append(len(batch['inputs']))
    return place(batch, rows, *others)
def recorded(*arguments, start_step, **options):
    [folder] = [w.split('=')[1] for w in argv if w.startswith('--workdir=')]
    name = f'stream-{jax.process_index()}-{start_step}.jsonl'
    with open(Path(folder) / name, 'w') as file:
        batches = make(*arguments, start_step=start_step, **options)
        for step, batch in enumerate(batches, start_step):
            rows = {}
            for shard in batch['inputs'].addressable_shards:
                first = shard.index[0].start or 0
                for number, row in enumerate(np.asarray(shard.data), first):
                    rows[number] = zlib.crc32(row.tobytes())
            print(json.dumps([step, loaded[0], rows]), file=file, flush=True)
            yield batch
dataloader.training_batches, dataloader.place_batch = recorded, recorded_place
"""


def stream_of(workdir, first, last):
    """{(step, row): checksum} of the steps from `first` to before `last`.

    No row may be loaded by two processes.
    """
    stream = {}
    for path in workdir.glob(f'stream-*-{first}.jsonl'):
        for line in path.read_text().splitlines():
            step, loaded, rows = json.loads(line)
            assert loaded == len(rows)
            for row, checksum in rows.items():
                if step < last:
                    assert (step, int(row)) not in stream
                    stream[step, int(row)] = checksum
    return stream


def params_of(workdir):
    config = run_dir.read_config(workdir)
    params = load_model(
        config, workdir, make_mesh(config.mesh, jax.devices()[:1])
    ).params
    return jax.tree.map(np.asarray, params)


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_with_the_same_batches(tmp_path):
    texts = [f'Sentence {i} is about {"a long" * (i % 50)} story.' for i in range(2000)]
    lines = (json.dumps(dict(text=' '.join(texts[i::100]))) for i in range(100))
    (tmp_path / 'plain.jsonl').write_text('\n'.join(lines))
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(path=str(tmp_path / 'plain.jsonl')))

    def start(workdir, count):
        words = ('pretrain', f'--config={config}', f'--workdir={workdir}')
        devices = 4 // count
        return runs.start_cluster(words, before=RECORD, devices=devices, count=count)

    alone = tmp_path / 'alone'
    for process in start(alone, 1):
        runs.finish(process)
    workdir = tmp_path / 'run'
    processes = start(workdir, 2)
    wait_until(processes[0], lambda: lines_of(workdir) >= 2)
    processes[1].terminate()
    said = [runs.finish(process, 75)[0] for process in processes][0]
    stopped = int(said.split('saved at step ')[1].split(';')[0])
    assert 2 <= stopped < 8
    for process in start(workdir, 4):
        runs.finish(process)

    expected = stream_of(alone, 0, 8)
    assert len(expected) == 8 * 8
    found = stream_of(workdir, 0, stopped) | stream_of(workdir, stopped, 8)
    assert found == expected
    for ours, theirs in zip(runs.records(workdir), runs.records(alone), strict=True):
        assert ours.pop('split') == theirs.pop('split')
        assert ours == pytest.approx(theirs, rel=1e-5)  # the order of float32 sums
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5),
        params_of(workdir),
        params_of(alone),
    )
