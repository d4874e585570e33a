"""Writes a run as a GGUF file for llama.cpp: the Llama layout, by the package `gguf`.

llama.cpp rotates neighbouring pairs of a head, and we rotate (x[i], x[i + h]). So the
rows of queries and keys change their order: 0 1 2 3 with pairs (0, 2), (1, 3) becomes
0 2 1 3. Scaled rotary frequencies are a tensor of factors, which llama.cpp divides by.
"""

from pathlib import Path

import numpy as np
import sentencepiece
from ml_collections import ConfigDict

from gptjax.convert import hf_llama
from gptjax.convert.export_model import (
    Description,
    describe,
    iterate_tensors,
    plan_tensors,
    trained_template,
)
from gptjax.core.console import UserError, progress_bar
from gptjax.core.storage import refuse_existing, writing_draft
from gptjax.data.chat_template import stop_conditions, to_jinja
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.train.load_model import inference_mesh, load_model, load_run_tokenizer

CONVERTER = 'export a folder, and convert it with convert_hf_to_gguf.py of llama.cpp'


def export_gguf(
    config: ConfigDict,
    workdir: Path,
    target: Path,
    step: int | None = None,
    dtype: str | None = None,
) -> None:
    """Writes the file `target`, whole or not at all; vectors are float32.

    Args:
        dtype: of matrices, 'float32' or 'bfloat16'; None: float32.

    Raises:
        UserError: the model is no Llama, or its tokenizer none of ours.
    """
    refuse_existing(target)
    tokenizer, settings = load_run_tokenizer(config, workdir)
    description = describe(config, workdir, settings)
    _check(description, settings, tokenizer)
    try:
        import gguf
    except ImportError:
        raise UserError('--to=FILE.gguf needs a package: pip install gguf') from None
    with progress_bar('reading the model', 0):
        trained = load_model(config, workdir, inference_mesh(config), step)
    with writing_draft(target) as draft:
        writer = gguf.GGUFWriter(draft, 'llama')
        _add_settings(writer, settings, dtype)
        _add_tokenizer(writer, config, workdir, tokenizer)
        _write_tensors(writer, description, trained, dtype)
        writer.close()
    print(f'llama in {target}')


def _check(description: Description, settings, tokenizer) -> None:
    kind = description.config['model_type']
    if description.family is not hf_llama.FAMILY or kind != 'llama':
        raise UserError(
            f'--to=FILE.gguf: only the Llama layout leaves as GGUF, and this is '
            f'{kind}: {CONVERTER}'
        )
    if settings.rotary_scale != 1:
        raise UserError(
            f'model.rotary_scale={settings.rotary_scale}: GGUF has no such factor: '
            f'{CONVERTER}'
        )
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            '--to=FILE.gguf: this run has a tokenizer.json, and only our own '
            f'tokenizers leave as GGUF: {CONVERTER}'
        )


def _add_settings(writer, settings, dtype) -> None:
    import gguf

    kinds = dict(bfloat16=gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_file_type(kinds.get(dtype, gguf.LlamaFileType.ALL_F32))
    writer.add_vocab_size(settings.vocab_size)
    writer.add_context_length(settings.context)
    writer.add_embedding_length(settings.width)
    writer.add_block_count(settings.num_layers)
    writer.add_feed_forward_length(settings.mlp_width)
    writer.add_head_count(settings.num_heads)
    writer.add_head_count_kv(settings.num_kv_heads)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_rope_freq_base(settings.rotary_base)
    writer.add_layer_norm_rms_eps(settings.norm_epsilon)


def _add_tokenizer(writer, config, workdir, tokenizer: Tokenizer) -> None:
    """The SentencePiece model: its pieces, their scores and their kinds."""
    import gguf

    path = workdir / 'tokenizer' / 'tokenizer.model'
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    kinds = gguf.TokenType
    pieces, scores, types = [], [], []
    for token in range(tokenizer.vocab_size):
        pieces.append(model.id_to_piece(token).encode())
        scores.append(model.get_score(token))
        special = model.is_control(token) or model.is_unknown(token)
        plain = kinds.BYTE if model.is_byte(token) else kinds.NORMAL
        types.append(kinds.CONTROL if special else plain)
    writer.add_tokenizer_model('llama')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    template = trained_template(config, workdir) or config.chat.template
    writer.add_chat_template(to_jinja(template, tokenizer))
    _, stop_tokens = stop_conditions(template, tokenizer)
    for token in {*stop_tokens} - {tokenizer.eos_id}:
        writer.add_eot_token_id(token)


def _write_tensors(writer, description, trained, dtype) -> None:
    """Writes what was added, and the tensors, with one at a time in memory."""
    import gguf

    settings, kinds = trained.settings, gguf.GGMLQuantizationType
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_layers)
    for tensor in plan_tensors(description.family, trained):
        if dtype == 'bfloat16' and len(tensor.shape) > 1:
            tensor = tensor._replace(dtype='BF16')
        name, kind = names.get_name(tensor.rule.name, ('.weight',)), kinds[tensor.dtype]
        shape, size = tensor.shape, tensor.num_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
    factors_h = _rotary_factors(settings)
    if factors_h is not None:
        shape, size = factors_h.shape, factors_h.nbytes
        writer.add_tensor_info('rope_freqs.weight', shape, factors_h.dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in iterate_tensors(description.family, trained):
        tensor = np.ascontiguousarray(tensor, np.float32)
        if name.endswith(('q_proj.weight', 'k_proj.weight')):
            tensor = _pair_neighbours(tensor, settings.head_dim)
        if dtype == 'bfloat16' and tensor.ndim > 1:
            tensor = gguf.quantize(tensor, kinds.BF16)
        writer.write_tensor_data(tensor)
    if factors_h is not None:
        writer.write_tensor_data(factors_h)


def _rotary_factors(settings) -> np.ndarray | None:
    if not settings.rotary_frequencies:
        return None
    scaled_h = np.asarray(settings.rotary_frequencies, np.float32)
    exponents_h = np.arange(len(scaled_h)) / len(scaled_h)
    return (settings.rotary_base**-exponents_h / scaled_h).astype(np.float32)


def _pair_neighbours(weight: np.ndarray, head_dim: int) -> np.ndarray:
    split = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))
