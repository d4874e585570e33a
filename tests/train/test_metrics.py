"""metrics.jsonl: one complete JSON object per line, and each step once."""

import json
import math

from gptjax.train.metrics import MetricsWriter, read_metrics


def writer(workdir, step):
    return MetricsWriter(workdir, step, tensorboard=False)


def test_lines_are_json_with_null_for_what_is_not_finite(tmp_path):
    metrics = writer(tmp_path, 0)
    metrics.write(1, 'train', dict(loss=math.nan, grad_norm=math.inf))
    metrics.write(1, 'validation', dict(loss=0.1 + 0.2))
    text = (tmp_path / 'metrics.jsonl').read_text()  # before the writer is closed
    assert text == (
        '{"step": 1, "split": "train", "loss": null, "grad_norm": null}\n'
        '{"step": 1, "split": "validation", "loss": 0.30000000000000004}\n'
    )
    metrics.close()


def test_opened_at_a_step_later_lines_go_and_others_stay_as_they_are(tmp_path):
    metrics = writer(tmp_path, 0)
    for step in range(1, 5):
        metrics.write(step, 'train', dict(loss=1 / step, bad=math.nan))
    metrics.write(4, 'validation', dict(loss=0.5))
    metrics.close()
    path = tmp_path / 'metrics.jsonl'
    before = path.read_text().splitlines()
    metrics = writer(tmp_path, 3)
    assert path.read_text().splitlines() == before[:3]
    metrics.write(4, 'train', dict(loss=0.25))
    metrics.close()
    assert [line['step'] for line in read_metrics(path)] == [1, 2, 3, 4]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    whole = json.dumps(dict(step=1, split='train', loss=2.0)) + '\n'
    for end in ('{"step": 2, "spl', '{"step": 2}', '{"é'):
        cut = (whole + end).encode()
        path.write_bytes(cut[:-1] if end.endswith('é') else cut)
        assert read_metrics(path) == [dict(step=1, split='train', loss=2.0)]
    writer(tmp_path, 5).close()
    assert path.read_text() == whole


def test_damaged_lines_are_skipped_with_a_word(tmp_path, capsys):
    path = tmp_path / 'metrics.jsonl'
    whole = [json.dumps(dict(step=n, split='train', loss=2.0)).encode() for n in (1, 2)]
    for damage in (b'\0\0\0\0\0', b'', b'{"step": ', b'3', b'{"step": 1}', b'\xff'):
        path.write_bytes(b'\n'.join([whole[0], damage, whole[1], b'']))
        assert [record['step'] for record in read_metrics(path)] == [1, 2]
        assert f'{path}: damaged lines skipped: 1' in capsys.readouterr().err
    writer(tmp_path, 5).close()  # a run resumes
    assert path.read_bytes() == b'\n'.join([*whole, b''])


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / 'metrics.jsonl') == []
