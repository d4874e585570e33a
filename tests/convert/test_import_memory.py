"""The memory of an import, and a kill in the middle of it, with a model of 2 GB."""

import json
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import runs
from tests.tokenizer import made_tokenizers

D, F, V = 2048, 5632, 512
GB, GIB = 10**9, 2**30
PEAK = """
import resource, sys
from gptjax.cli import main
code = main(sys.argv)
print('peak', 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def write_folder(folder, dtype, num_layers) -> tuple[int, int]:
    """A made-up Llama; returns (bytes of all tensors, of the largest tensor)."""
    made_tokenizers.write_folder(folder, made_tokenizers.byte_level())
    config = dict(
        model_type='llama',
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        vocab_size=V,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        hidden_act='silu',
    )
    (folder / 'config.json').write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(dtype)
    tensors = {
        f'{name}.weight': draw(V, D) for name in ('lm_head', 'model.embed_tokens')
    }
    tensors['model.norm.weight'] = draw(D)
    for i in range(num_layers):
        shapes = {f'self_attn.{n}_proj': (D, D) for n in 'qkvo'}
        shapes |= {f'mlp.{name}_proj': (F, D) for name in ('gate', 'up')}
        shapes |= {'mlp.down_proj': (D, F), 'input_layernorm': (D,)}
        shapes['post_attention_layernorm'] = (D,)
        for name, shape in shapes.items():
            tensors[f'model.layers.{i}.{name}.weight'] = draw(*shape)
    save_file(tensors, folder / 'model.safetensors', metadata=dict(format='pt'))
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return sum(sizes), max(sizes)


def import_command(folder, run, *flags):
    words = 'import', '--from', folder, '--workdir', run, *flags
    return [sys.executable, '-c', PEAK, *map(str, words)]


@pytest.mark.long
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_peak_memory_and_a_kill(tmp_path, dtype):
    folder, run, killed = (tmp_path / name for name in ('folder', 'run', 'killed'))
    numpy_dtype = dict(float32=np.float32, bfloat16=ml_dtypes.bfloat16)[dtype]
    stored, largest = write_folder(
        folder, numpy_dtype, 10 if dtype == 'float32' else 20
    )
    assert stored > 2 * GB
    options = dict(cwd=runs.ROOT, env=runs.environment(), text=True)
    command = import_command(folder, run, f'--dtype={dtype}')
    began = time.monotonic()
    printed = subprocess.check_output(command, **options)
    seconds = time.monotonic() - began
    peak = int(printed.split('peak ')[1])
    print(f'{dtype}: {stored / GB:.2f} GB, peak {peak / GB:.2f} GB, {seconds:.0f} s')
    assert peak <= stored + largest + GIB

    process = subprocess.Popen(
        import_command(folder, killed, f'--dtype={dtype}'), **options
    )
    while not [*killed.glob('checkpoints/*')] and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (killed / 'config.json').exists()
    subprocess.check_output(
        import_command(folder, killed, f'--dtype={dtype}'), **options
    )
    records = [
        json.loads(next(place.glob('checkpoints/*/record/*')).read_text())
        for place in (run, killed)
    ]
    assert records[0] == records[1]  # the checksums of all arrays too
