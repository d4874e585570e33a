"""Log-probabilities of every pair under the reference policy: RUN/reference.npz.

The reference policy never changes. So its log-probabilities are computed once, and
training needs no second model in memory.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.data.preference_pairs import (
    EMPTY,
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
ROWS_AT_ONCE = 64  # or fewer, if micro-batches are smaller
WITHOUT_TOKENS = ('reference', 'labels')  # arrays of a batch without a token axis


class Split(NamedTuple):
    """The M pairs of a split with log-probabilities under the reference policy.

    reference: float32 (M, 2), ln q of the chosen and the rejected reply.
    mismatched: for KTO, the prompt of each pair with a reply to another prompt.
    mismatched_reference: float32 (M,), ln q of these replies.
    """

    pairs: list[Pair]
    reference: np.ndarray
    mismatched: list[Row]
    mismatched_reference: np.ndarray


def add_reference_logprobs(
    config: ConfigDict,
    workdir: Path,
    pairs: dict[str, list[Pair]],
    mesh: Mesh,
    start: Trained | None,
    is_new: bool,
) -> dict[str, Split]:
    """The splits with their log-probabilities; reads or writes RUN/reference.npz.

    Args:
        start: the model that the run initialises from, if it is loaded.
        is_new: False for a run that resumes, which keeps the log-probabilities that it
            began with and loads no reference for them.

    Raises:
        UserError: the model of `preference.reference` has another tokenizer, or a
            context that is too short.
    """
    mismatched = {split: [] for split in pairs}
    if config.preference.loss == 'kto':
        mismatched = {
            split: mismatch_replies(
                split_pairs, config.data.context, [*chain(*pairs.values())]
            )
            for split, split_pairs in pairs.items()
        }
    inputs = storage.fingerprint(
        [storage.read_json(workdir / 'pairs' / 'manifest.json'), config.preference.loss]
    )
    reference = model = None
    if is_new:
        reference = _load_reference(config, start, mesh)
        model = model_fingerprint(reference)
    arrays = _read_arrays(workdir / NAME, inputs, model)
    if arrays is None:
        if reference is None:
            reference = _load_reference(config, start, mesh)
            model = model_fingerprint(reference)
        compute_logprobs = make_logprobs(config, reference, mesh)
        arrays = {}
        for split, split_pairs in pairs.items():
            rows = [row for p in split_pairs for row in p.rows]
            arrays[split] = compute_logprobs(rows).reshape(-1, 2)
            arrays[f'{split}/others'] = compute_logprobs(mismatched[split])

        def write():
            content = io.BytesIO()
            np.savez(content, about=inputs, weights=model, **arrays)
            storage.write_bytes(workdir / NAME, content.getvalue())

        multihost.run_on_first_process(workdir, write)
    return {
        split: Split(
            split_pairs, arrays[split], mismatched[split], arrays[f'{split}/others']
        )
        for split, split_pairs in pairs.items()
    }


def _read_arrays(path: Path, inputs: str, model: str | None) -> dict | None:
    """The arrays of RUN/reference.npz; None if other pairs or another model made them.

    With `model` None, those of any model are accepted. A damaged file counts as absent.
    """
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        multihost.print_once(f'{path} is damaged: it is made again')
        return None
    same = str(arrays.pop('about')) == inputs
    same &= str(arrays.pop('weights')) == model or model is None
    return arrays if same else None


def without_reference(pairs: dict[str, list[Pair]]) -> dict[str, Split]:
    """The splits for a loss that needs no reference policy."""
    return {
        split: Split(
            split_pairs, np.zeros((len(split_pairs), 2), np.float32), [], np.zeros(0)
        )
        for split, split_pairs in pairs.items()
    }


def make_logprobs(config: ConfigDict, trained: Trained, mesh: Mesh):
    """`logprobs(rows) -> (N,)` float32 NumPy: ln p of the reply in each row."""
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
            'reference log-probabilities', len(rows), 'replies'
        ) as advance:
            for numbers in batch_in_order(len(rows), rows_at_once):
                chosen = [rows[n] if n >= 0 else EMPTY for n in numbers]
                batch = pad_rows(chosen, context, trained.tokenizer.pad_id)
                batch = put_on_mesh(batch, mesh)
                parts.append(np.asarray(compiled(trained.params, batch)))
                advance(np.sum(numbers >= 0))
        return np.concatenate(parts)[: len(rows)]

    return logprobs


def _load_reference(config: ConfigDict, start: Trained | None, mesh: Mesh) -> Trained:
    """The model of `preference.reference`; if that is empty, of `start.run`."""
    start = start or load_start(config, mesh)
    run = config.preference.reference
    if not run:
        return apply_compute_settings(config, start)
    field = f'preference.reference={run}'
    workdir = Path(run).expanduser().absolute()
    try:
        reference = load_model(run_dir.read_config(workdir), workdir, mesh)
    except UserError as error:
        raise UserError(f'{field}: {error}') from error
    refuse_other_vocabulary(run, reference.tokenizer, start.tokenizer)
    if reference.settings.context < config.data.context:
        raise UserError(
            f'{field} has a context of {reference.settings.context} tokens, less than '
            f'data.context={config.data.context}: use a shorter data.context'
        )
    return apply_compute_settings(config, reference)


def refuse_other_vocabulary(run: str, reference, tokenizer) -> None:
    """Refuses a reference model whose tokenizer is not that of the policy."""
    if reference.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f'preference.reference={run} was trained with another tokenizer '
            f'({reference.vocab_size:,} tokens, that of start.run has '
            f'{tokenizer.vocab_size:,}), so its probabilities are for other tokens: '
            'name a run with the same tokenizer, or leave the field empty'
        )


# ---- batches


def make_pair_arrays(split: Split, chosen: np.ndarray, context: int, pad: int) -> dict:
    """The arrays of a batch of pairs.

    Args:
        chosen: int (N,), indices of pairs; -1 is padding.
        context: T.
        pad: token id of padding.

    Returns:
        Those of `pad_rows`, (N, 2, T) for (chosen, rejected); reference: float32
        (N, 2); counts: float32 (N,), 1 for a pair and 0 for padding. For labelled
        replies also labels: int32 (N, 2), -1 for an empty row; counts is then half of
        the number of replies.
    """
    rows = []
    for number in chosen:
        rows += split.pairs[number].rows if number >= 0 else [EMPTY, EMPTY]
    arrays = pad_rows(rows, context, pad)
    arrays = {name: array.reshape(-1, 2, context) for name, array in arrays.items()}
    counts = (chosen >= 0).astype(np.float32)
    if split.pairs[0].labels is not None:
        labels = [split.pairs[n].labels if n >= 0 else (-1, -1) for n in chosen]
        arrays['labels'] = np.array(labels, np.int32)
        counts = (arrays['labels'] >= 0).sum(axis=1, dtype=np.float32) / 2
    return dict(arrays, reference=split.reference[chosen], counts=counts)


def make_mismatched_arrays(
    split: Split, chosen: np.ndarray, context: int, pad: int
) -> dict:
    """The arrays (N, T) of the mismatched rows of a batch, and reference (N,).

    Their mean is the KTO baseline, so other pairs take the place of padding.
    """
    chosen = np.resize(chosen[chosen >= 0], len(chosen))
    arrays = pad_rows([split.mismatched[number] for number in chosen], context, pad)
    return dict(arrays, reference=split.mismatched_reference[chosen])
