"""Checkpoints: arrays saved by Orbax, and a JSON record that describes them."""

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

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.parallel import multihost

FILE_BYTES = 2**26  # of a file of arrays; so much is in memory until it is written


class Checkpoints:
    """The checkpoints of a run, saved in the background while training continues.

    A checkpoint has two items: `state`, the training state, and `record`, a JSON object
    with

        run         other values that a resumed run needs
        loss        the validation loss at this step; null if there was no validation
        identity    see below
        arrays      {name: dtype and shape}
        checksums   {name: number}, to detect changed bytes
        sha256      of all of the above

    Args:
        identity: a checkpoint with another value is refused, for example
            `{'tokenizer': hash, 'data': hash}`. A name that the checkpoint lacks
            (older ones lack 'data') is not compared.
        keep: the number of newest checkpoints to keep.
        keep_best: the number of checkpoints with the lowest loss to keep as well.
        read_only: changes nothing, because another process may be saving there.
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

        # Orbax logs every save, and logs at length each error that it also raises.
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
        self._damage = {}  # why the losses of some steps cannot be read

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest recorded loss; None if no checkpoint has a loss.

        A checkpoint whose loss cannot be read is reported: it may have been the best.
        """
        losses = {step: self._loss_of(step) for step in self.steps()}
        for step, reason in self._damage.items():
            multihost.print_once(
                f'checkpoint {self._path(step)} is damaged: {reason}: it is left out'
            )
        scored = [(loss, step) for step, loss in losses.items() if loss is not None]
        return min(scored)[1] if scored else None

    def newest_record(self) -> tuple[int, dict]:
        """(step, the run's part of the record) of the newest checkpoint.

        Raises:
            UserError: there is none, or its record is damaged.
        """
        if not self.steps():
            raise UserError(f'{self.folder} has no checkpoint: train the run first')
        step = self.steps()[-1]
        try:
            return step, self._read_record(step)['run']
        except Exception as error:
            if not _is_damage(error):
                raise
            raise UserError(
                f'{self._path(step)} is damaged: {_first_line(error)}: run the command '
                'that trains the run again'
            ) from error

    def save(self, step: int, state, record: dict, loss: float | None = None) -> None:
        """Starts to save copies: the caller may then change state and record.

        Raises:
            OSError: the disk has no room for the state. If the disk filled up during
                the previous save, other errors are possible.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self.folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        content = dict(
            run=copy.deepcopy(record),  # the run changes it during the save
            loss=loss,
            identity=self._identity,
            arrays=describe(state),
            checksums=checksums(state),
        )
        content['sha256'] = storage.fingerprint(content)
        self._losses[step] = loss
        args = self._ocp.args
        saved = args.PyTreeSave(state, ocdbt_target_data_file_size=FILE_BYTES)
        self._manager.save(
            step,
            args=args.Composite(state=saved, record=args.JsonSave(content)),
            force=True,
        )

    def restore(self, abstract, step: int | None = None, report=print, select=None):
        """Returns (state, record) of the newest undamaged checkpoint, or None.

        Unless `read_only`, newer damaged ones are renamed to `damaged-STEP`. The state
        is laid out as in `abstract`, whichever mesh it was saved from.

        Args:
            abstract: the shapes, dtypes and shardings of the state.
            step: restores this checkpoint only; it is not renamed if damaged.
            report: prints a line about each damaged checkpoint.
            select: from a state to the arrays to read; `select(state)` is returned.

        Raises:
            UserError: the checkpoint is of another model or tokenizer, or all are
                damaged; none is renamed then.
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
                reason = _first_line(error)
            # Each process reads its own shards: one may fail where others succeed.
            if not multihost.any_process(reason is not None):
                self._set_aside(damaged)
                return state, _complete_record(content['run'])
            path = self._path(candidate)
            report(f'checkpoint {path} is damaged: {reason or "in another process"}')
            damaged.append(candidate)
        if damaged and step is not None:
            raise UserError(
                f'{self._path(step)} is damaged: move it away, and the checkpoint '
                'with the next lowest loss is used'
            )
        if damaged:
            raise UserError(
                f'{self.folder}: every checkpoint is damaged: move the folder away to '
                'train from the beginning, or restore a backup'
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f'{step:08d}'

    def wait(self) -> None:
        """Waits until the running save is complete."""
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
            raise Damaged('the record has changed since it was saved')
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
        # A tree with None has no leaf there, so that `checksums` skips it.
        read = jax.tree.map(lambda leaf: None if leaf is unread else leaf, state)
        for name, checksum in checksums(read).items():
            if checksum != content['checksums'][name]:
                raise Damaged(f'{name} has changed since it was saved')
        return select(state)

    def _loss_of(self, step) -> float | None:
        if step not in self._losses:
            try:
                self._losses[step] = self._read_record(step)['loss']
            except Exception as error:
                if not _is_damage(error):
                    raise
                self._losses[step] = None  # `restore` reports the damage
                self._damage[step] = _first_line(error)
        return self._losses[step]

    def _set_aside(self, steps):
        if not steps or self._read_only:
            return
        if multihost.is_first_process():
            for step in steps:
                target = self.folder / f'damaged-{step}'
                shutil.rmtree(target, ignore_errors=True)
                self._path(step).rename(target)
        multihost.barrier('damaged checkpoints are renamed')
        self._manager.reload()
        for step in steps:
            self._losses.pop(step, None)
            self._damage.pop(step, None)

    def _check(self, step, content, abstract):
        label = f'checkpoint {step} in {self.folder}'
        for name, value in self._identity.items():
            saved = content['identity'].get(name, value)
            if saved != value:
                raise UserError(
                    f'{label} was made with other {name} ({str(saved)[:12]} there, '
                    f'{str(value)[:12]} here): restore the {name} that it was trained '
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
                    f'{label}: {name} is {saved[name]}, with this config it is '
                    f'{wanted[name]}: {FIX}'
                )


FIX = 'use the config that it was trained with, or another --workdir'


class _NewestAndBest:
    """An Orbax preservation policy: keeps the newest and the best checkpoints."""

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
    """{'params/embed/token': 'float32[2048,192]', …} for a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        name_of(path): f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
        for path, leaf in leaves
    }


def _complete_record(record: dict) -> dict:
    """The record as new runs have it; older ppo and grpo runs had two other fields.

    {'lowest_loss': 0.5, 'worse': 2} → {'early_stopping': {'best': 0.5, 'worse': 2, …}}
    """
    if 'lowest_loss' not in record:
        return record
    record = dict(record)
    best, worse = record.pop('lowest_loss'), record.pop('worse', 0)
    return dict(record, early_stopping=dict(patience=0, best=best, worse=worse))


class Damaged(Exception):
    """A checkpoint does not hold what was saved."""


# TensorStore's messages about missing, truncated or changed bytes start with these
# codes. Errors of memory, permissions and unreachable file systems have other codes.
DAMAGE_CODES = (
    *('NOT_FOUND', 'DATA_LOSS', 'OUT_OF_RANGE'),
    *('FAILED_PRECONDITION', 'INVALID_ARGUMENT'),
)
# Orbax's messages about a missing item or file contain these words.
DAMAGE_WORDS = ('was not found in the checkpoint', 'pytree structure error')


def _first_line(error: BaseException) -> str:
    return str(error).strip().split('\n')[0][:120]


def _is_damage(error: BaseException) -> bool:
    """Whether the error means that files of a checkpoint are missing or changed."""
    if isinstance(error, Damaged | FileNotFoundError | json.JSONDecodeError):
        return True
    if isinstance(error, ValueError | KeyError):
        message = str(error)
        return message.startswith(DAMAGE_CODES) or any(
            words in message for words in DAMAGE_WORDS
        )
    # Orbax wraps TensorStore's errors about arrays in a plain Exception.
    cause = error.__cause__
    return type(error) is Exception and cause is not None and _is_damage(cause)


# ---- checksums

LARGE_BYTES = 2**26
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(tree) -> dict[str, int]:
    """{'params/embed/token': 2951203442, …} for a tree of arrays.

    The checksum of an array is the sum over i of (2 i + 1) times the bits of element i,
    modulo 2^32. It is exact, so it is the same on every mesh. The factor is odd, so one
    changed element always changes the sum; other changes are missed once in 2^32.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    is_large = lambda leaf: leaf.ndim >= 3 and leaf.nbytes >= LARGE_BYTES
    small = [(name_of(path), leaf) for path, leaf in leaves if not is_large(leaf)]
    sums = {name_of(path): _sum_layers(leaf) for path, leaf in leaves if is_large(leaf)}
    values = _compute_checksums([leaf for _, leaf in small]) if small else ()
    sums |= zip((name for name, _ in small), np.asarray(values).tolist(), strict=True)
    return {name_of(path): int(sums[name_of(path)]) for path, _ in leaves}


def _sum_layers(stacked) -> int:
    """The checksum of a large array, whose temporary copies have one layer each."""
    sums = [_compute_layer_checksum(stacked, i) for i in range(stacked.shape[0])]
    return sum(int(checksum) for checksum in sums) % 2**32


def why_unfinished(workdir: Path) -> str:
    """Says that the training of a run has not ended; '' if it has."""
    if not run_dir.has_checkpoint(workdir):
        return f'{workdir} has no checkpoint, so it is not finished'
    checkpoints = Checkpoints(workdir / 'checkpoints', {}, read_only=True)
    step, record = checkpoints.newest_record()
    checkpoints.close()
    if record.get('reason') is None:
        return f'{workdir} is not finished (it is at step {step:,})'
    return ''


def name_of(path) -> str:
    """'params/embed/token' for the key path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


@jax.jit
def _compute_checksums(arrays):
    return jnp.stack([_compute_checksum(array) for array in arrays])


@jax.jit
def _compute_layer_checksum(stacked, layer):
    array = jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
    return _compute_checksum(array, layer)


def _compute_checksum(array, first=0):
    """Of an array, or of its part at the index `first` of a further axis in front."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize])
    index = jnp.asarray(first, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        along_axis = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * np.uint32(size % 2**32) + along_axis
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
