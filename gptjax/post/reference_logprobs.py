"""What the reference says of every pair, computed once: RUN/reference.npz.

The reference never moves, so its log-probabilities are numbers, and training needs no
second model in memory.
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
    """The M pairs of a split, and what the reference says of them.

    pairs: in order.
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
        config: of the run.
        workdir: RUN.
        pairs: of each split.
        mesh: where they are computed.
        start: the model that the run starts from; None where the run goes on, and
            RUN's numbers are those it began with.

    Raises:
        UserError: `preference.reference` is a model of another vocabulary, or of a
            shorter context.
    """
    context = config.data.context
    others = {
        split: mismatch_replies(its, context) if config.preference.loss == 'kto' else []
        for split, its in pairs.items()
    }
    about = storage.fingerprint(
        [storage.read_json(workdir / 'pairs' / 'manifest.json'), config.preference.loss]
    )
    reference = None if start is None else _reference_of(config, start, mesh)
    weights = None if reference is None else model_fingerprint(reference)
    found = _read(workdir, about, weights)
    if found is None:
        if reference is None:
            reference = _reference_of(config, load_start(config, mesh), mesh)
            weights = model_fingerprint(reference)
        logprobs = make_logprobs(config, reference, mesh)
        found = {}
        for split, its in pairs.items():
            rows = [row for pair in its for row in (pair.chosen, pair.rejected)]
            found[split] = logprobs(rows).reshape(-1, 2)
            found[f'{split}/others'] = logprobs(others[split])
        multihost.run_on_first_process(
            workdir, lambda: _write(workdir, about, weights, found)
        )
    return {
        split: Split(its, others[split], found[split], found[f'{split}/others'])
        for split, its in pairs.items()
    }


def without_references(pairs: dict[str, list[Pair]]) -> dict[str, Split]:
    """The splits for a loss that knows no reference."""
    nothing = np.zeros(0, np.float32)
    return {
        split: Split(its, [], np.zeros((len(its), 2), np.float32), nothing)
        for split, its in pairs.items()
    }


def make_logprobs(config: ConfigDict, trained: Trained, mesh: Mesh):
    """`logprobs(rows) -> (N,)` float32 NumPy: ln p of each row's reply.

    Args:
        config: `data.context`, `train.loss_chunk`, and the batch that fits.
        trained: the model, on the mesh.
        mesh: where it computes.
    """
    context, train = config.data.context, config.train
    rows_at_once = train.batch_size // train.accumulation
    rows_at_once *= max(1, ROWS_AT_ONCE // rows_at_once)

    def of_batch(params, batch):
        logprobs_BT, _ = token_logprobs(
            trained.settings, params, batch, chunk=train.loss_chunk
        )
        return reply_sums(logprobs_BT, batch['weights'])

    compiled = jax.jit(of_batch, out_shardings=replicated(mesh))

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


def _reference_of(config, start, mesh):
    """The model of `preference.reference`, or the one that the run starts from."""
    named = config.preference.reference
    return apply_compute_settings(
        config, _named(config, start, mesh) if named else start
    )


def _named(config, start, mesh):
    run = config.preference.reference
    field = f'preference.reference={run}'
    workdir = Path(run).expanduser().absolute()
    try:
        reference = load_model(run_dir.read_config(workdir), workdir, mesh)
    except UserError as error:
        raise UserError(f'{field}: {error}') from error
    theirs, ours = reference.tokenizer, start.tokenizer
    if theirs.fingerprint != ours.fingerprint:
        raise UserError(
            f'{field} was trained with another tokenizer (of {theirs.vocab_size:,} '
            f'pieces, here {ours.vocab_size:,}): its probabilities are of other '
            'tokens; name a run with the same tokenizer, or leave the field empty'
        )
    if reference.settings.context < config.data.context:
        raise UserError(
            f'{field} has a context of {reference.settings.context} tokens, less than '
            f'data.context={config.data.context}: use a shorter data.context'
        )
    return reference


def _read(workdir, about, weights):
    """The arrays of RUN/reference.npz; None where they are of something else."""
    path = workdir / NAME
    if not path.exists():
        return None
    with np.load(path) as stored:
        found = {name: stored[name] for name in stored.files}
    same = str(found.pop('about')) == about
    same &= str(found.pop('weights')) == weights or weights is None
    return found if same else None


def _write(workdir, about, weights, found):
    content = io.BytesIO()
    np.savez(content, about=about, weights=weights, **found)
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
