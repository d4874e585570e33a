"""The process of `bench decode --against torch`: Hugging Face's `generate`.

A model of `transformers` with our weights, float32, greedy, on all cores. `eager` is
`generate` with its default, growing cache. `compile` uses a static cache and a compiled
step, which `generate` enables by itself only on GPUs.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from gptjax.bench import hf_weights
from gptjax.bench.comparison import serve_commands
from gptjax.bench.torch_gpt2 import import_torch


def main() -> None:
    parser = argparse.ArgumentParser(description='Runs Hugging Face generate.')
    parser.add_argument('--weights', type=Path, required=True, help='an .npz file')
    parser.add_argument('--mode', choices=('eager', 'compile'), required=True)
    flags = parser.parse_args()
    serve_commands(lambda: start(flags.weights, flags.mode))


def start(weights: Path, mode: str) -> tuple[dict, dict]:
    """Loads the model; (description, commands) for `serve_commands`."""
    torch, transformers = import_torch(mode)
    model = load(weights)

    def logits(tokens: list[int], path: str) -> dict:
        """Writes the float32 logits (T, V) of a text to `path`."""
        with torch.inference_mode():
            logits_BTV = model(torch.tensor([tokens]), use_cache=False).logits
        np.save(path, logits_BTV[0].numpy())
        return {}

    def generate_all(prompts: list[list[int]], lengths: list[int], batch: int) -> dict:
        """Generates `batch` replies at once, until the longest of them ends."""
        start_time = time.perf_counter()
        tokens = []
        for first in range(0, len(prompts), batch):
            rows = slice(first, first + batch)
            tokens += generate(model, mode, prompts[rows], lengths[rows])
        return {'seconds': time.perf_counter() - start_time, 'tokens': tokens}

    description = {
        'name': f'torch {torch.__version__}, transformers {transformers.__version__}',
        'threads': torch.get_num_threads(),
        'parameters': sum(p.numel() for p in model.parameters()),
    }
    return description, {'logits': logits, 'generate': generate_all}


def load(weights: Path):
    """The model of a file of `hf_weights.write`."""
    import torch
    import transformers

    sizes, arrays = hf_weights.read(weights)
    family = (
        'Qwen3' if sizes.pop('qk_norm') else 'Llama'
    )  # they differ only in these norms
    config = getattr(transformers, f'{family}Config')(
        **sizes,
        mlp_bias=False,
        bos_token_id=None,
        eos_token_id=None,  # no reply ends before its length
        pad_token_id=0,
        attn_implementation='sdpa',
        dtype='float32',
    )
    model = getattr(transformers, f'{family}ForCausalLM')(config)
    if sizes['hidden_act'] == 'relu2':
        from transformers.models.arcee.modeling_arcee import ArceeMLP

        for layer in model.model.layers:
            layer.mlp = ArceeMLP(config)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    return model.eval()


def generate(model, mode: str, prompts: list[list[int]], lengths: list[int]):
    """The tokens of the replies, cut to `lengths`."""
    import torch
    from transformers import CompileConfig

    T = max(map(len, prompts))
    tokens_BT = torch.zeros((len(prompts), T), dtype=torch.long)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):  # `generate` needs padding on the left
        tokens_BT[row, T - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, T - len(prompt) :] = 1
    options = {}
    if mode == 'compile':
        compilation = CompileConfig()
        compilation._compile_all_devices = True  # on a CPU too
        options = dict(cache_implementation='static', compile_config=compilation)
    with torch.inference_mode():
        output_BT = model.generate(
            tokens_BT,
            attention_mask=mask_BT,
            max_new_tokens=max(lengths),
            do_sample=False,
            **options,
        )
    replies = output_BT[:, T:].tolist()
    return [reply[:n] for reply, n in zip(replies, lengths, strict=True)]


if __name__ == '__main__':
    main()
