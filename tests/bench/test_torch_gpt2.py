"""The line protocol, with a fake interpreter in the place of the one with torch."""

import importlib.util
import sys

import pytest

from gptjax.bench.torch_gpt2 import torch_trainer
from gptjax.core.console import UserError

SIZES = dict(layers=1, heads=2, width=8, context=4, vocab_size=16, batch_size=2)


def fake_interpreter(tmp_path, body):
    path = tmp_path / 'python'
    path.write_text(f'#!{sys.executable}\nimport json, os, sys\n{body}')
    path.chmod(0o755)
    return str(path)


def test_steps_are_asked_for_and_answered(tmp_path):
    python = fake_interpreter(
        tmp_path,
        """
print(json.dumps({'arguments': sys.argv[1:]}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    assert order.pop('do') == 'go'
    seconds = [0.5] * order['steps']
    print(json.dumps({'step_seconds': seconds, 'loss': 1.0}), flush=True)
open(os.path.dirname(sys.argv[0]) + '/ended', 'w').close()
""",
    )
    with torch_trainer('eager', python=python, **SIZES) as (description, go):
        assert go(3) == [0.5, 0.5, 0.5]
        assert go(1) == [0.5]
    assert (tmp_path / 'ended').exists()
    arguments = description['arguments']
    assert arguments[:2] == ['-m', 'gptjax.bench.torch_gpt2']
    sizes = [f'--{name}={size}' for name, size in SIZES.items()]
    assert arguments[2:] == ['--serve', '--mode=eager', *sizes]


def test_its_last_words_are_the_message(tmp_path):
    python = fake_interpreter(tmp_path, "sys.exit('a warning\\nno torch here')")
    with pytest.raises(UserError, match='^--against=torch: no torch here$'):
        with torch_trainer('eager', python=python, **SIZES):
            pass


def test_an_end_between_steps_is_told(tmp_path):
    python = fake_interpreter(
        tmp_path, 'print("{}", flush=True)\nsys.stdin.readline()\nsys.exit(9)'
    )
    with torch_trainer('eager', python=python, **SIZES) as (_, go):
        for _ in range(2):  # the second finds the pipe broken
            with pytest.raises(UserError, match='ended with code 9'):
                go(1)


def test_no_such_interpreter(tmp_path):
    with pytest.raises(UserError, match='^--against_python=.*No such file'):
        with torch_trainer('eager', python=str(tmp_path / 'none'), **SIZES):
            pass


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / 'torch.py').write_text("raise ImportError('gone', name='torch')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(UserError, match='has no torch: run its pip install torch'):
        with torch_trainer('eager', **SIZES):
            pass


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('transformers') is None, reason='needs transformers'
)
@pytest.mark.parametrize('mode', ['eager', 'compile'])
def test_the_real_one_starts_at_the_loss_of_chance(mode):
    with torch_trainer(mode, **SIZES) as (description, go):
        assert description['first_loss'] == pytest.approx(2.77, abs=0.05)  # ln 16
        assert len(go(2)) == 2
