"""What int8 weights and an int8 cache cost, in bits per byte of held-out text."""

import math
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.eval.held_out_documents import read_held_out_texts
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.train.load_model import load_engine

NUM_DOCUMENTS = 64  # of the validation split, the first window of each


def measure_change(
    config: ConfigDict,
    workdir: Path,
    step: int | None = None,
    weights: str = 'whole',
    cache: str = 'whole',
) -> dict:
    """Bits per byte of held-out text as an engine computes it, whole and quantised.

    Each document's first window is scored through the engine's own programs, so
    that the cache is written and read as in a reply. Of a run that was fine-tuned the
    documents are those of the run it started from.
    """
    texts = read_held_out_texts(config, workdir, NUM_DOCUMENTS)

    def measure(**formats):
        engine = load_engine(config, workdir, step, slots=1, prefix_bytes=0, **formats)
        return bits_per_byte(engine, texts)

    whole, num_bytes = measure()
    changed, _ = measure(weights=weights, cache=cache)
    return dict(whole=whole, changed=changed, documents=len(texts), bytes=num_bytes)


def bits_per_byte(engine: Engine, texts: list[str]) -> tuple[float, int]:
    """(bits per byte of the first window of each text, bytes of them all)."""
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
    """The change in a line, or why it was not measured; None: nothing is quantised."""
    if weights == cache == 'whole':
        return None
    try:
        change = measure_change(config, workdir, step, weights, cache)
    except UserError as error:  # the model can be talked to all the same
        return f'weights {weights}, cache {cache}: not measured: {error}'
    return format_change(change, weights, cache)


def format_change(change: dict, weights: str, cache: str) -> str:
    """The change in a line."""
    return (
        f'weights {weights}, cache {cache}: {change["changed"]:.4f} bits per byte, '
        f'{change["changed"] - change["whole"]:+.4f} to whole numbers '
        f'(the first window of {change["documents"]} validation documents, '
        f'{change["bytes"]:,} bytes)'
    )
