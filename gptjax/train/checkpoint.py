"""Checkpoints: Orbax on disk, and a record that says what is in them."""

import copy
import errno
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.parallel import multihost


class Checkpoints:
    """The checkpoints of one run, written while training goes on.

    Each has two items: `state`, the training state, and `record`, a JSON object
    of

        run         whatever else a run goes on from
        loss        of the validation at this step; null where there was none
        identity    as below
        arrays      {name: dtype and shape}, so that what does not match is
                    refused by name
        checksums   {name: number}, so that changed bytes are noticed
        sha256      of all this

    Args:
        identity: what must be equal for a checkpoint to fit, for example
            `{'tokenizer': hash, 'data': hash}`. A name that a checkpoint lacks, as
            older ones lack 'data', fits.
        keep: the newest that stay.
        keep_best: those of the lowest loss that stay besides; 0: none.
        read_only: leaves alone what another process may be writing there.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict,
        keep: int = 2,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        import orbax.checkpoint as ocp

        # Orbax logs every save, and pages about each error that it then raises.
        logging.getLogger('absl').setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._identity = identity
        self._read_only = read_only
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(keep, keep_best, self._loss_of),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                step_format_fixed_length=8,
            ),
        )
        self._losses = {}

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose recorded loss is lowest; None if none has one."""
        losses = {step: self._loss_of(step) for step in self.steps()}
        scored = [(loss, step) for step, loss in losses.items() if loss is not None]
        return min(scored)[1] if scored else None

    def save(self, step: int, state, record: dict, loss: float | None = None) -> None:
        """Begins to write copies: state and record may change once this returns.

        A disk without room for it is an OSError; one that filled up while an earlier
        one was written can raise other errors.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self.folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        content = dict(
            run=copy.deepcopy(record),  # it is written while the run goes on
            loss=loss,
            identity=self._identity,
            arrays=describe(state),
            checksums=checksums(state),
        )
        content['sha256'] = storage.fingerprint(content)
        self._losses[step] = loss
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.PyTreeSave(state), record=args.JsonSave(content)
            ),
            force=True,
        )

    def restore(self, abstract, step: int | None = None, report=print, select=None):
        """(state, record) of the newest checkpoint that is whole, or None.

        Damaged ones are reported, the newest that is whole is used, and (unless
        read-only) they are moved aside as `damaged-STEP`. The state is laid out as
        `abstract` says, whatever mesh it was saved from.

        Args:
            abstract: the state's shapes, dtypes and shardings.
            step: this one alone, and untouched if it is damaged.
            report: prints a line about a damaged one.
            select: from a tree like the state to the arrays that are wanted: no other
                is read, and `select(state)` is returned.

        Raises:
            UserError: a checkpoint of another model or tokenizer, or all are
                damaged; nothing is moved then.
        """
        select = select or (lambda state: state)
        damaged = []
        candidates = self.steps()[::-1] if step is None else [step]
        for candidate in candidates:
            reason = None
            try:
                content = self._read_record(candidate)
                self._check(candidate, content, abstract)
                state = self._read_state(candidate, content, abstract, select)
            except Exception as error:
                if not _is_damage(error):
                    raise
                reason = str(error).strip().split('\n')[0][:120]
            # A process reads its own shards: what one cannot read none may use.
            if not multihost.any_process(reason is not None):
                self._set_aside(damaged)
                return state, content['run']
            path = self._path(candidate)
            report(f'checkpoint {path} is damaged: {reason or "for another process"}')
            damaged.append(candidate)
        if damaged and step is not None:
            raise UserError(
                f'{self._path(step)} is damaged: move it away, and the next best '
                'is used'
            )
        if damaged:
            raise UserError(
                f'{self.folder}: every checkpoint is damaged: move the folder away to '
                'train from the beginning, or bring back a copy'
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f'{step:08d}'

    def wait(self) -> None:
        """Returns when the checkpoints that were begun are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _read(self, step, item, args):
        restored = self._manager.restore(
            step, args=self._ocp.args.Composite(**{item: args})
        )
        return restored[item]

    def _read_record(self, step) -> dict:
        content = dict(self._read(step, 'record', self._ocp.args.JsonRestore()))
        written = content.pop('sha256', None)
        if storage.fingerprint(content) != written:
            raise Damaged('its record has changed since it was written')
        return content

    def _read_state(self, step, content, abstract, select):
        names = jax.tree_util.tree_map_with_path(
            lambda path, _: name_of(path), abstract
        )
        wanted = set(jax.tree.leaves(select(names)))
        unread = self._ocp.PLACEHOLDER
        target = jax.tree.map(
            lambda name, leaf: leaf if name in wanted else unread, names, abstract
        )
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(target)
        state = self._read(
            step,
            'state',
            self._ocp.args.PyTreeRestore(target, restore_args=restore_args),
        )
        # None is no leaf.
        read = jax.tree.map(lambda leaf: None if leaf is unread else leaf, state)
        for name, checksum in checksums(read).items():
            if checksum != content['checksums'][name]:
                raise Damaged(f'{name} has changed since it was written')
        return select(state)

    def _loss_of(self, step) -> float | None:
        if step not in self._losses:
            try:
                self._losses[step] = self._read_record(step)['loss']
            except Exception as error:
                if not _is_damage(error):
                    raise
                self._losses[step] = None  # `restore` reports it
        return self._losses[step]

    def _set_aside(self, steps):
        if not steps or self._read_only:
            return
        if multihost.is_first_process():
            for step in steps:
                target = self.folder / f'damaged-{step}'
                shutil.rmtree(target, ignore_errors=True)
                self._path(step).rename(target)
        multihost.barrier('damaged checkpoints are aside')
        self._manager.reload()
        for step in steps:
            self._losses.pop(step, None)

    def _check(self, step, content, abstract):
        label = f'checkpoint {step} in {self.folder}'
        for name, value in self._identity.items():
            saved = content['identity'].get(name, value)
            if saved != value:
                raise UserError(
                    f'{label} was made with other {name} ({str(saved)[:12]} there, '
                    f'{str(value)[:12]} here): bring back the {name} it was trained '
                    'with, or use another --workdir'
                )
        saved, wanted = content['arrays'], describe(abstract)
        for name in sorted(saved.keys() | wanted.keys()):
            if name not in saved:
                raise UserError(f'{label} lacks the array {name}: {FIX}')
            if name not in wanted:
                raise UserError(f'{label} has an extra array {name}: {FIX}')
            if saved[name] != wanted[name]:
                raise UserError(
                    f'{label}: {name} is {saved[name]}, this config makes it '
                    f'{wanted[name]}: {FIX}'
                )


FIX = 'use the config it was trained with, or another --workdir'


class _NewestAndBest:
    """Orbax's policy: which checkpoints stay."""

    def __init__(self, keep: int, keep_best: int, loss_of):
        self.keep = keep
        self.keep_best = keep_best
        self.loss_of = loss_of

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [info.step for info in checkpoints]  # in order
        scored = [step for step in steps if self.loss_of(step) is not None]
        best = sorted(scored, key=self.loss_of)[: self.keep_best]
        return [step in steps[-self.keep :] or step in best for step in steps]


def describe(tree) -> dict[str, str]:
    """{'params/embed/token': 'float32[2048,192]', …} of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        name_of(path): f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
        for path, leaf in leaves
    }


class Damaged(Exception):
    """What a checkpoint holds is not what was written."""


# How TensorStore's messages about missing, cut off or changed bytes begin. They begin
# otherwise for too little memory, no right to read, and a file system without answer.
DAMAGE_CODES = (
    *('NOT_FOUND', 'DATA_LOSS', 'OUT_OF_RANGE'),
    *('FAILED_PRECONDITION', 'INVALID_ARGUMENT'),
)
# In Orbax' messages about an item, or a file of it, that is missing.
DAMAGE_WORDS = ('was not found in the checkpoint', 'pytree structure error')


def _is_damage(error: BaseException) -> bool:
    """Whether files of a checkpoint are missing or changed."""
    if isinstance(error, Damaged | FileNotFoundError | json.JSONDecodeError):
        return True
    if isinstance(error, ValueError | KeyError):
        message = str(error)
        return message.startswith(DAMAGE_CODES) or any(
            words in message for words in DAMAGE_WORDS
        )
    # Orbax wraps TensorStore's error about an array in a plain Exception.
    cause = error.__cause__
    return type(error) is Exception and cause is not None and _is_damage(cause)


# ---- checksums

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(tree) -> dict[str, int]:
    """{'params/embed/token': 2951203442, …} of a tree of arrays.

    The sum over i of (2 i + 1) times the bits of element i, modulo 2^32. One pass
    where the arrays live; exact, so that it is the same on every mesh. An odd
    factor loses no bit: one changed element always shows, and of other changes
    all but one in 2^32.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = np.asarray(_compute_checksums([leaf for _, leaf in leaves])).tolist()
    return {name_of(path): int(s) for (path, _), s in zip(leaves, sums, strict=True)}


def name_of(path) -> str:
    """'params/embed/token' of a key path."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


@jax.jit
def _compute_checksums(arrays):
    return jnp.stack([_compute_checksum(array) for array in arrays])


def _compute_checksum(array):
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize])
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):
        along_axis = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * np.uint32(size % 2**32) + along_axis
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
