"""The cost of int8 weights and an int8 cache, in bits per byte of held-out text."""

import math
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.eval.held_out_documents import read_held_out_texts
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.train.load_model import load_engine

NUM_DOCUMENTS = 64  # of the validation split; the first window of each is scored


def measure_change(
    config: ConfigDict,
    workdir: Path,
    step: int | None = None,
    weights: str = 'whole',
    cache: str = 'whole',
) -> dict:
    """Bits per byte of held-out text by an engine, unquantized and quantized.

    The engine scores the first window of each document with its own programs, so the
    cache is written and read as in a reply. The documents of a fine-tuned run are those
    of the run that it started from.
    """
    texts = read_held_out_texts(config, workdir, NUM_DOCUMENTS)

    def measure(**formats):
        engine = load_engine(config, workdir, step, slots=1, prefix_bytes=0, **formats)
        return bits_per_byte(engine, texts)

    whole, num_bytes = measure()
    changed, _ = measure(weights=weights, cache=cache)
    return dict(whole=whole, changed=changed, documents=len(texts), bytes=num_bytes)


def bits_per_byte(engine: Engine, texts: list[str]) -> tuple[float, int]:
    """(bits per byte, number of bytes) of the first windows of all texts."""
    tokenizer, room = engine.tokenizer, engine.context - 1
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)[:room]] for text in texts]
    replies = engine.complete(
        prompts, SamplingParameters(max_tokens=0, prompt_logprobs=True)
    )
    tokens = [token for reply in replies for token in reply.prompt[1:]]
    size = sum(len(tokenizer.bytes_of(token.id)) for token in tokens)
    return -sum(token.logprob for token in tokens) / math.log(2) / size, size


def describe_cost(
    config: ConfigDict, workdir: Path, step: int | None, weights: str, cache: str
) -> str | None:
    """A line about the change, or why it is unknown; None if nothing is quantized."""
    if weights == cache == 'whole':
        return None
    try:
        change = measure_change(config, workdir, step, weights, cache)
    except UserError as error:  # not a reason to refuse a chat
        return f'weights {weights}, cache {cache}: not measured: {error}'
    return format_change(change, weights, cache)


def format_change(change: dict, weights: str, cache: str) -> str:
    return (
        f'weights {weights}, cache {cache}: {change["changed"]:.4f} bits per byte, '
        f'{change["changed"] - change["whole"]:+.4f} compared with no quantization '
        f'(the first window of {change["documents"]} validation documents, '
        f'{change["bytes"]:,} bytes)'
    )
