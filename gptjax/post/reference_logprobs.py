"""Log-probabilities of every pair under the reference policy: RUN/reference.npz.

The reference never moves, so they are computed once, and training needs no second
model in memory.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.data.preference_pairs import (
    Pair,
    Row,
    batch_in_order,
    mismatch_replies,
    pad_rows,
)
from gptjax.parallel import multihost
from gptjax.parallel.sharding import put_on_mesh, replicated
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import reply_sums
from gptjax.post.policy_model import apply_compute_settings
from gptjax.train.init_from import load_start
from gptjax.train.load_model import Trained, load_model, model_fingerprint

NAME = 'reference.npz'
ROWS_AT_ONCE = 64  # at most; fewer where a batch has fewer


class Split(NamedTuple):
    """The M pairs of a split, and their log-probabilities under the reference.

    others: for KTO, each pair's prompt with a reply to another; else empty.
    reference: float32 (M, 2), ln q of the chosen and of the rejected reply.
    other_reference: float32 (M,), of `others`.
    """

    pairs: list[Pair]
    others: list[Row]
    reference: np.ndarray
    other_reference: np.ndarray


def with_references(
    config: ConfigDict,
    workdir: Path,
    pairs: dict[str, list[Pair]],
    mesh: Mesh,
    start: Trained | None,
) -> dict[str, Split]:
    """The splits with the reference's numbers: those of RUN, or computed and kept.

    Args:
        start: the model that the run starts from; None where the run resumes, and
            RUN's numbers are those it began with.

    Raises:
        UserError: `preference.reference` is a model of another vocabulary, or of a
            shorter context.
    """
    context = config.data.context
    others = {
        split: mismatch_replies(split_pairs, context)
        if config.preference.loss == 'kto'
        else []
        for split, split_pairs in pairs.items()
    }
    inputs = storage.fingerprint(
        [storage.read_json(workdir / 'pairs' / 'manifest.json'), config.preference.loss]
    )
    reference = None if start is None else _load_reference(config, start, mesh)
    model = None if reference is None else model_fingerprint(reference)
    numbers = _read(workdir, inputs, model)
    if numbers is None:
        if reference is None:
            reference = _load_reference(config, load_start(config, mesh), mesh)
            model = model_fingerprint(reference)
        compute_logprobs = make_logprobs(config, reference, mesh)
        numbers = {}
        for split, split_pairs in pairs.items():
            rows = [row for p in split_pairs for row in (p.chosen, p.rejected)]
            numbers[split] = compute_logprobs(rows).reshape(-1, 2)
            numbers[f'{split}/others'] = compute_logprobs(others[split])
        multihost.run_on_first_process(
            workdir, lambda: _write(workdir, inputs, model, numbers)
        )
    return {
        split: Split(
            split_pairs, others[split], numbers[split], numbers[f'{split}/others']
        )
        for split, split_pairs in pairs.items()
    }


def without_references(pairs: dict[str, list[Pair]]) -> dict[str, Split]:
    """The splits for a loss without a reference."""
    nothing = np.zeros(0, np.float32)
    return {
        split: Split(
            split_pairs, [], np.zeros((len(split_pairs), 2), np.float32), nothing
        )
        for split, split_pairs in pairs.items()
    }


def make_logprobs(config: ConfigDict, trained: Trained, mesh: Mesh):
    """`logprobs(rows) -> (N,)` float32 NumPy: ln p of each row's reply.

    Args:
        config: `data.context`, `train.loss_chunk`, and the batch that fits.
        trained: the model, on the mesh.
    """
    context, train = config.data.context, config.train
    rows_at_once = train.batch_size // train.accumulation
    rows_at_once *= max(1, ROWS_AT_ONCE // rows_at_once)

    def compute_batch(params, batch):
        logprobs_BT, _ = token_logprobs(
            trained.settings, params, batch, chunk=train.loss_chunk
        )
        return reply_sums(logprobs_BT, batch['weights'])

    compiled = jax.jit(compute_batch, out_shardings=replicated(mesh))

    def logprobs(rows: Sequence[Row]) -> np.ndarray:
        parts = [np.zeros(0, np.float32)]
        with console.progress_bar(
            'the reference reads', len(rows), 'replies'
        ) as advance:
            for numbers in batch_in_order(len(rows), rows_at_once):
                chosen = [rows[n] if n >= 0 else EMPTY for n in numbers]
                batch = pad_rows(chosen, context, trained.tokenizer.pad_id)
                batch = put_on_mesh(batch, mesh)
                parts.append(np.asarray(compiled(trained.params, batch)))
                advance(np.sum(numbers >= 0))
        return np.concatenate(parts)[: len(rows)]

    return logprobs


def _load_reference(config: ConfigDict, start: Trained, mesh: Mesh) -> Trained:
    """The model of `preference.reference`, or the one that the run starts from."""
    run = config.preference.reference
    if not run:
        return apply_compute_settings(config, start)
    field = f'preference.reference={run}'
    workdir = Path(run).expanduser().absolute()
    try:
        reference = load_model(run_dir.read_config(workdir), workdir, mesh)
    except UserError as error:
        raise UserError(f'{field}: {error}') from error
    its_tokenizer, tokenizer = reference.tokenizer, start.tokenizer
    if its_tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f'{field} was trained with another tokenizer (of '
            f'{its_tokenizer.vocab_size:,} pieces, here {tokenizer.vocab_size:,}): its '
            'probabilities are of other tokens; name a run with the same tokenizer, or '
            'leave the field empty'
        )
    if reference.settings.context < config.data.context:
        raise UserError(
            f'{field} has a context of {reference.settings.context} tokens, less than '
            f'data.context={config.data.context}: use a shorter data.context'
        )
    return apply_compute_settings(config, reference)


def _read(workdir: Path, inputs: str, model: str | None) -> dict | None:
    """The arrays of RUN/reference.npz; None where something else made them."""
    path = workdir / NAME
    if not path.exists():
        return None
    with np.load(path) as stored:
        numbers = {name: stored[name] for name in stored.files}
    same = str(numbers.pop('about')) == inputs
    same &= str(numbers.pop('weights')) == model or model is None
    return numbers if same else None


def _write(workdir: Path, inputs: str, model: str, numbers: dict) -> None:
    content = io.BytesIO()
    np.savez(content, about=inputs, weights=model, **numbers)
    storage.write_bytes(workdir / NAME, content.getvalue())


# ---- batches

EMPTY = Row(np.zeros(1, np.int32), 1)  # all padding
WITHOUT_TOKENS = ('reference',)  # (N, 2)


def pair_arrays(split: Split, chosen: np.ndarray, context: int, pad: int) -> dict:
    """The arrays of chosen pairs: a batch.

    Args:
        split: that they are of.
        chosen: int (N,), which; -1 is no pair.
        context: T.
        pad: id of padding.

    Returns:
        `pad_rows`, (N, 2, T): chosen, rejected. reference: float32 (N, 2). counts:
        float32 (N,), 1 for a pair, else 0.
    """
    rows = []
    for number in chosen:
        rows += split.pairs[number][1:] if number >= 0 else [EMPTY, EMPTY]
    arrays = pad_rows(rows, context, pad)
    arrays = {name: array.reshape(-1, 2, context) for name, array in arrays.items()}
    counts = (chosen >= 0).astype(np.float32)
    return dict(arrays, reference=split.reference[chosen], counts=counts)


def other_arrays(split: Split, chosen: np.ndarray, context: int, pad: int) -> dict:
    """The same of the prompts with replies to others, (N, T), and reference (N,).

    They are averaged, so where there is no pair another stands in.
    """
    chosen = np.resize(chosen[chosen >= 0], len(chosen))
    arrays = pad_rows([split.others[number] for number in chosen], context, pad)
    return dict(arrays, reference=split.other_reference[chosen])
