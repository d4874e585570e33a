"""PyTorch's GPT-2: a fake interpreter, and the real one if it is installed."""

import importlib.util
import sys

import pytest

from gptjax.bench.torch_gpt2 import torch_trainer

SIZES = dict(layers=1, heads=2, width=8, context=4, vocab_size=16, batch_size=2)


def fake_interpreter(tmp_path, body):
    path = tmp_path / 'python'
    path.write_text(f'#!{sys.executable}\nimport json, os, sys\n{body}')
    path.chmod(0o755)
    return str(path)


def test_the_process_gets_flags_and_trains_on_command(tmp_path):
    python = fake_interpreter(
        tmp_path,
        """
print(json.dumps({'arguments': sys.argv[1:]}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    assert command.pop('do') == 'train'
    seconds = [0.5] * command['steps']
    print(json.dumps({'step_seconds': seconds, 'loss': 1.0}), flush=True)
open(os.path.dirname(sys.argv[0]) + '/ended', 'w').close()
""",
    )
    with torch_trainer('eager', python=python, **SIZES) as (description, run_steps):
        assert run_steps(3) == [0.5, 0.5, 0.5]
        assert run_steps(1) == [0.5]
    assert (tmp_path / 'ended').exists()
    arguments = description['arguments']
    assert arguments[:2] == ['-m', 'gptjax.bench.torch_gpt2']
    sizes = [f'--{name}={size}' for name, size in SIZES.items()]
    assert arguments[2:] == ['--serve', '--mode=eager', *sizes]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('transformers') is None, reason='needs transformers'
)
@pytest.mark.parametrize('mode', ['eager', 'compile'])
def test_pytorch_starts_at_the_loss_of_chance(mode):
    with torch_trainer(mode, **SIZES) as (description, run_steps):
        assert description['first_loss'] == pytest.approx(2.77, abs=0.05)  # ln 16
        assert len(run_steps(2)) == 2
