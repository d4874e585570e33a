"""The process of `bench decode --against llama.cpp`: our weights as a GGUF file.

llama.cpp decodes float32 weights on all cores with continuous batching and a float32
cache, greedily. The calls go to its C interface, so that the Python work of
llama-cpp-python is not measured.
"""

import argparse
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np

from gptjax.bench import hf_weights
from gptjax.bench.comparison import available_cores, serve_commands
from gptjax.core.console import UserError

# Names of Hugging Face after 'model.layers.0.' -> names of GGUF after 'blk.0.'.
LAYER_NAMES = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}
OTHER_NAMES = {
    'model.embed_tokens.weight': 'token_embd.weight',
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': 'output.weight',
}
GGML_F32 = 0


def main() -> None:
    parser = argparse.ArgumentParser(description='Runs llama.cpp.')
    parser.add_argument('--weights', type=Path, required=True, help='an .npz file')
    flags = parser.parse_args()
    serve_commands(lambda: start(flags.weights))


def start(weights: Path) -> tuple[dict, dict]:
    """Loads the model; (description, commands) for `serve_commands`."""
    try:
        import gguf  # noqa: F401 (one message for both packages)
        import llama_cpp
    except ImportError as error:
        raise UserError(
            f'{sys.executable} has no {error.name}: run its pip install gguf '
            'llama-cpp-python, or give another Python by --against_python'
        ) from None
    sizes, arrays = hf_weights.read(weights)
    path = weights.with_suffix('.gguf')
    write_gguf(path, sizes, arrays)
    # One decoder for each number of slots, like our engines.
    context = sizes['max_position_embeddings']
    decoder = cache(lambda slots: Decoder(path, slots, context))

    def logits(tokens: list[int], path: str) -> dict:
        """Writes the float32 logits (T, V) of a text to `path`."""
        rows = [(0, position, token, True) for position, token in enumerate(tokens)]
        np.save(path, decoder(1).decode(rows))
        decoder(1).forget(0)
        return {}

    def generate(prompts: list[list[int]], lengths: list[int], batch: int) -> dict:
        """Generates all replies, at most `batch` at once."""
        decode = decoder(batch).complete
        start_time = time.perf_counter()
        tokens = decode(prompts, lengths)
        return {'seconds': time.perf_counter() - start_time, 'tokens': tokens}

    description = {
        'name': f'llama-cpp-python {llama_cpp.__version__}',
        'threads': available_cores(),
        'parameters': sum(weight.size for weight in arrays.values()),
    }
    return description, {'logits': logits, 'generate': generate}


class Decoder:
    """llama.cpp's model and a cache of `slots` sequences of `context` tokens each."""

    def __init__(self, path: Path, slots: int, context: int):
        import llama_cpp

        self._llama = llama_cpp
        self._slots = slots
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), model_params
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = slots * context
        params.n_batch = slots * context  # most tokens of one call
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = available_cores()
        params.type_k = params.type_v = GGML_F32
        # Flash attention computes in 16 bits, and was not faster.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise UserError(f'llama.cpp does not load {path}: see its messages')
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(slots * context, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Logits, float32 (rows, V), of the rows that request them.

        A row is (sequence, position, token, whether to return logits).
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError('llama_decode failed')
        wanted = sum(row[3] for row in rows)
        logits = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (wanted, self._vocab_size))

    def forget(self, sequence: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def complete(self, prompts, lengths) -> list[list[int]]:
        """The tokens of the replies, with continuous batching."""
        replies = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        running = [None] * self._slots  # the request of each sequence
        while waiting or any(request is not None for request in running):
            rows, decoded = [], []
            for sequence, request in enumerate(running):
                if request is None and waiting:
                    request = running[sequence] = waiting.pop(0)
                if request is None:
                    continue
                prompt, reply = prompts[request], replies[request]
                tokens = reply[-1:] or prompt  # not in the cache yet
                start = len(prompt) + len(reply) - len(tokens)
                last = len(tokens) - 1
                rows += [
                    (sequence, start + i, token, i == last)
                    for i, token in enumerate(tokens)
                ]
                decoded.append((sequence, request))
            chosen = self.decode(rows).argmax(axis=-1).tolist()
            for (sequence, request), token in zip(decoded, chosen, strict=True):
                replies[request].append(token)
                if len(replies[request]) == lengths[request]:
                    self.forget(sequence)
                    running[sequence] = None
        return replies


def write_gguf(path: Path, sizes: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes a float32 GGUF file of the architecture 'llama', without a vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(str(path), 'llama')
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model('none')
    writer.add_vocab_size(sizes['vocab_size'])
    writer.add_context_length(sizes['max_position_embeddings'])
    writer.add_embedding_length(sizes['hidden_size'])
    writer.add_block_count(sizes['num_hidden_layers'])
    writer.add_feed_forward_length(sizes['intermediate_size'])
    writer.add_head_count(sizes['num_attention_heads'])
    writer.add_head_count_kv(sizes['num_key_value_heads'])
    writer.add_key_length(sizes['head_dim'])
    writer.add_value_length(sizes['head_dim'])
    writer.add_rope_dimension_count(sizes['head_dim'])
    writer.add_rope_freq_base(sizes['rope_theta'])
    writer.add_layer_norm_rms_eps(sizes['rms_norm_eps'])
    for name, weight in arrays.items():
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            weight = pair_neighbours(weight, sizes['head_dim'])
        writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """'model.layers.3.mlp.up_proj.weight' -> 'blk.3.ffn_up.weight'."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    layer, weight = name.removeprefix('model.layers.').split('.', 1)
    return f'blk.{layer}.{LAYER_NAMES[weight.removesuffix(".weight")]}.weight'


def pair_neighbours(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows in the order of llama.cpp, where rotary pairs are neighbours.

    A head with rows 0 1 2 3 and pairs (0, 2), (1, 3) → rows 0 2 1 3.
    """
    split = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))


if __name__ == '__main__':
    main()
