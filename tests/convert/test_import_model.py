"""A folder of a Hugging Face model becomes a run."""

import json
import shutil

import jax
import numpy as np
import pytest

from gptjax.core import run_dir
from gptjax.eval.report import run_report
from gptjax.train.init_from import float32_params
from gptjax.train.load_model import inference_mesh, load_model
from tests import runs
from tests.convert import made_models

torch = pytest.importorskip('torch')


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """(folder, the model of `transformers`, the run)."""
    folder = tmp_path_factory.mktemp('qwen')
    model = made_models.write_folder(folder, 'Qwen3')
    run = folder.with_name('run')
    assert runs.gptjax('import', '--from', folder, '--workdir', run) == 0
    return folder, model, run


def load(run):
    config = run_dir.read_config(run)
    return load_model(config, run, inference_mesh(config))


def test_greedy_replies_equal_generate(imported, tmp_path):
    _, model, run = imported
    path = tmp_path / 'a.json'
    flags = '--temperature=0', '--max_tokens=20', '--prompt=Hello the', f'--json={path}'
    assert runs.gptjax('sample', '--workdir', run, *flags) == 0
    sample = json.loads(path.read_text())
    theirs = model.generate(
        torch.tensor([sample['prompt_ids']]), max_new_tokens=20, do_sample=False
    )
    assert sample['reply_ids'] == theirs[0, len(sample['prompt_ids']) :].tolist()


def test_a_template_that_refuses_a_message_is_said(tmp_path, capsys):
    made_models.write_folder(tmp_path / 'hf', 'Llama')
    template = '{{ raise_exception("no, never") }}'
    (tmp_path / 'hf' / 'chat_template.jinja').write_text(template)
    flags = '--from', tmp_path / 'hf', '--workdir', tmp_path / 'run'
    assert runs.gptjax('import', *flags) == 0
    assert 'warning: with one message of a user, the chat' in capsys.readouterr().out


@pytest.mark.slow
def test_text_is_prepared_with_its_own_tokenizer(imported, tmp_path, capsys):
    run = tmp_path / 'run'
    shutil.copytree(imported[-1], run)
    for stage in ('data', 'prepare'):
        assert runs.gptjax(stage, '--workdir', run) == 0
    capsys.readouterr()
    assert runs.gptjax('eval', '--workdir', run) == 0
    assert 'token frequencies' in capsys.readouterr().out


def test_a_second_import_changes_nothing_and_another_folder_is_refused(
    imported, tmp_path, capsys
):
    folder, _, run = imported
    before = {
        path: path.stat().st_mtime_ns for path in run.rglob('*') if path.is_file()
    }
    assert runs.gptjax('import', '--from', folder, '--workdir', run) == 0
    for path, time in before.items():
        assert path.stat().st_mtime_ns == time
    made_models.write_folder(tmp_path, 'Llama')
    assert runs.gptjax('import', '--from', tmp_path, '--workdir', run) == 2
    assert 'was made with another config' in capsys.readouterr().err


def test_the_run_is_trained_on_in_another_one(imported, tmp_path, capsys):
    _, _, run = imported
    notes = tmp_path / 'notes.txt'
    notes.write_text(
        '\n\n'.join(f'This is paragraph {i} of some notes.' for i in range(99))
    )
    flags = (
        *('pretrain', f'--config=configs/more.py:{notes}', f'--config.start.run={run}'),
        *('--config.train.num_steps=1', '--config.train.eval_batches=1'),
        *('--config.optim.warmup_steps=0', '--config.optim.learning_rate=0.0'),
        '--config.optim.matrix_learning_rate=0.0',
    )
    later = tmp_path / 'later'
    assert runs.gptjax(*flags, '--workdir', later) == 0
    jax.tree.map(np.testing.assert_array_equal, load(later).params, load(run).params)
    assert runs.gptjax('pretrain', '--workdir', run) == 2
    assert 'is an imported model' in capsys.readouterr().err


def test_the_report_says_where_it_came_from(imported):
    folder, _, run = imported
    page = run_report.write_report(run).read_text()
    assert f'Qwen3ForCausalLM, imported from <code>{folder}</code>' in page
    assert f'gptjax import --from {folder} --workdir {run}' in page


def test_bfloat16_is_kept(tmp_path):
    folder, run = tmp_path / 'folder', tmp_path / 'run'
    made_models.write_folder(folder, dtype=torch.bfloat16)
    flags = 'import', '--from', folder, '--workdir', run, '--dtype=bfloat16'
    assert runs.gptjax(*flags) == 0
    params = load(run).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'bfloat16'}
    whole = tmp_path / 'whole'
    assert runs.gptjax('import', '--from', folder, '--workdir', whole) == 0
    jax.tree.map(
        np.testing.assert_array_equal, float32_params(params), load(whole).params
    )
