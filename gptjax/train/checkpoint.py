"""Checkpoints: Orbax on disk, and a record that says what is in them."""

import logging
import shutil
from pathlib import Path

import jax

from gptjax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, written while training goes on.

    Each has two items: `state`, the training state, and `record`, a JSON
    object with whatever else a run goes on from, and the name, shape and
    dtype of every array, so that what does not match is refused by name.

    Args:
        folder: RUN/checkpoints.
        identity: what must be equal for a checkpoint to fit, for example
            `{'tokenizer': its hash}`.
        keep: the newest that stay.
        keep_best: the best that stay besides; 0: none.
        metric: of the metrics given to `save`, the one to be low.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict,
        keep: int = 2,
        keep_best: int = 0,
        metric: str = 'loss',
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        # Orbax speaks of every save and of every default it picks.
        logging.getLogger('absl').setLevel(logging.ERROR)
        policies = [managers.LatestN(max(keep, 1))]
        if keep_best:
            # With `reverse` the lowest come last, and the last are kept.
            best = managers.BestN(
                get_metric_fn=lambda metrics: metrics[metric],
                reverse=True,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            policies.append(best)
        self._ocp = ocp
        self._identity = identity
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                step_format_fixed_length=8,
            ),
        )

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose recorded metric is lowest; None if none has one."""
        scored = []
        for step in self.steps():
            metrics = self._manager.metrics(step)
            if metrics:
                scored.append((min(metrics.values()), step))
        return min(scored)[1] if scored else None

    def save(self, step: int, state, record: dict, metrics: dict | None = None):
        """Begins to write; the state is copied first and may then be donated."""
        args = self._ocp.args
        if step in self._manager.all_steps():
            return
        record = dict(record, identity=self._identity, arrays=describe(state))
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), record=args.JsonSave(record)
            ),
            metrics=metrics,
            force=True,
        )

    def restore(self, abstract, step: int | None = None, say=print):
        """(state, record) of the newest checkpoint that is whole, or None.

        A damaged one is reported, moved aside as `damaged-STEP`, and the one
        before it is used. The state is laid out as `abstract` says, whatever
        mesh it was saved from.

        Args:
            abstract: the state's shapes, dtypes and shardings.
            step: this one alone, and untouched if it is damaged.
            say: takes the report.

        Raises:
            UserError: a checkpoint of another model or tokenizer, or all are
                damaged.
        """
        candidates = self.steps()[::-1] if step is None else [step]
        for candidate in candidates:
            try:
                record = self._read(candidate, 'record', self._ocp.args.JsonRestore())
            except Exception as error:  # noqa: BLE001 (whatever Orbax meets)
                self._set_aside(candidate, error, say, step)
                continue
            self._check(candidate, record, abstract)
            try:
                restore = self._ocp.args.StandardRestore(abstract)
                return self._read(candidate, 'state', restore), record
            except Exception as error:  # noqa: BLE001
                self._set_aside(candidate, error, say, step)
        if candidates:
            raise UserError(
                f'{self.folder}: every checkpoint is damaged: delete the folder to '
                'train from the beginning'
            )
        return None

    def wait(self) -> None:
        """Returns when what was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step, item, args):
        restored = self._manager.restore(
            step, args=self._ocp.args.Composite(**{item: args})
        )
        return restored[item]

    def _set_aside(self, step, error, say, asked):
        reason = str(error).strip().split('\n')[0][:200]
        if asked is not None:
            raise UserError(f'checkpoint {step} in {self.folder} is damaged: {reason}')
        say(f'checkpoint {step} is damaged, going back to the one before: {reason}')
        if jax.process_index() == 0:
            source = self.folder / f'{step:08d}'
            target = self.folder / f'damaged-{step}'
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
        self._manager.reload()

    def _check(self, step, record, abstract):
        place = f'checkpoint {step} in {self.folder}'
        for name, value in self._identity.items():
            saved = record['identity'].get(name)
            if saved != value:
                raise UserError(
                    f'{place} was made with another {name} ({str(saved)[:12]}, now '
                    f'{str(value)[:12]}): use the run directory it belongs to'
                )
        saved, wanted = record['arrays'], describe(abstract)
        for name in sorted(saved.keys() | wanted.keys()):
            if name not in saved:
                raise UserError(f'{place} lacks the array {name}: {_FIX}')
            if name not in wanted:
                raise UserError(f'{place} has an extra array {name}: {_FIX}')
            if saved[name] != wanted[name]:
                raise UserError(
                    f'{place}: {name} is {saved[name]}, this config makes it '
                    f'{wanted[name]}: {_FIX}'
                )


_FIX = 'use the config it was trained with, or another --workdir'


def describe(tree) -> dict[str, str]:
    """{'params/embed/token': 'float32[2048,192]', …} of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): (
            f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
        )
        for path, leaf in leaves
    }
