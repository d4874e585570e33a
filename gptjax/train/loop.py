"""The loop of every supervised stage: step, log, validate, save, stop."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gptjax.core import console, run_dir
from gptjax.core.console import UserError
from gptjax.optim.early_stopping import EarlyStopping
from gptjax.parallel import multihost
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.interruption import interruption
from gptjax.train.metrics import MetricsWriter
from gptjax.train.state import TrainState

PROFILED_STEPS = 3


class Task(NamedTuple):
    """What the loop is given, besides the config.

    step: `(state, batch) -> (state, metrics)`, from `make_train_step`.
    batches: from a step's number to an iterator of batches from there on.
    validate: from the state to a dict of floats with `loss`.
    learning_rate: of a step; with 'muon' that of what is no matrix.
    flops_per_token: (causal, full), of training.
    peak_flops: of all devices together, per second.
    documents_of: from a step to the names of the documents in its batch.
    """

    step: Callable
    batches: Callable[[int], Iterator[dict]]
    validate: Callable[[TrainState], dict]
    learning_rate: Callable[[int], float]
    flops_per_token: tuple[float, float]
    peak_flops: float
    documents_of: Callable[[int], list[str]]


class Outcome(NamedTuple):
    """How a run ended, and by which signal where one ended it."""

    state: TrainState
    record: dict
    signal: int | None = None

    @property
    def reason(self) -> str:
        """'finished', 'stopped early', or 'interrupted' by a signal."""
        return self.record['reason'] or 'interrupted'

    def summary(self, **more) -> dict:
        """What a stage returns."""
        return dict(
            reason=self.reason,
            signal=self.signal,
            step=int(self.state.step),
            skipped=self.record['skipped'],
            validation=self.record['validation'],
            **more,
        )


def new_record(config: ConfigDict) -> dict:
    """What a run goes on from besides its arrays; JSON, kept in checkpoints."""
    stopping = EarlyStopping(config.train.patience)
    return dict(
        skipped=0,  # updates that were not finite, so far
        skipped_in_a_row=0,
        validation=None,  # the newest validation
        early_stopping=stopping._asdict(),
        reason=None,  # why the run ended, once it has
    )


def run(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    state: TrainState,
    record: dict,
    checkpoints: Checkpoints,
) -> Outcome:
    """Trains from `state` to the end, a stop, or a signal; saves before it returns.

    Where `checkpoint.keep_best` asks for it, a validation that is the best so far is
    saved too: no later stage takes a worse one for it.

    The metrics of a step are fetched while the next one runs: the device
    never waits for the loop.

    Raises:
        UserError: `train.max_bad_steps` updates in a row were not finite.
    """
    train = config.train
    first = int(state.step)
    writer = None
    if multihost.is_first_process():
        writer = MetricsWriter(workdir, first)
        run_dir.write_environment(workdir)
    batches = task.batches(first)
    pending = None  # (step, metrics) whose numbers have not been fetched
    stopping = EarlyStopping(**record['early_stopping'])
    saved = first
    clock = time.perf_counter()
    tracing = False
    reason, stop_signal = 'finished', None

    def settle():
        """Fetches and records the pending step; stops on too many bad ones."""
        nonlocal pending, clock
        if pending is None:
            return
        step, metrics = pending
        pending = None
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds, clock = now - clock, now
        good = values.pop('good') == 1.0
        record['skipped'] += not good
        record['skipped_in_a_row'] = 0 if good else record['skipped_in_a_row'] + 1
        rate = values['tokens'] / seconds
        values.update(
            learning_rate=float(task.learning_rate(step)),
            tokens_per_second=rate,
            step_seconds=seconds,
            mfu_causal=rate * task.flops_per_token[0] / task.peak_flops,
            mfu_full=rate * task.flops_per_token[1] / task.peak_flops,
            skipped=record['skipped'],
        )
        if writer:
            writer.write(step + 1, 'train', values)
        advance(1, f'loss {values["loss"]:.3f}, {rate:,.0f} tokens/s')
        if record['skipped_in_a_row'] >= train.max_bad_steps:
            raise UserError(_divergence(step, record, task, workdir))

    with (
        interruption() as asked_to_stop,
        console.progress_bar('training', train.num_steps, 'steps', first) as advance,
    ):
        advance(0, 'compiling')
        try:
            for step in range(first, train.num_steps):
                if step == train.profile_step:
                    jax.profiler.start_trace(str(workdir / 'profile'))
                    tracing = True
                state, metrics = task.step(state, next(batches))
                settle()
                pending = (step, metrics)
                if tracing and step == train.profile_step + PROFILED_STEPS - 1:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                    tracing = False

                done = step + 1
                last = done == train.num_steps
                best = False
                if done % train.eval_every == 0 or last:
                    settle()
                    validation = task.validate(state)
                    record['validation'] = dict(validation, step=done)
                    before, stopping = stopping, stopping.after(validation['loss'])
                    best = stopping.best != before.best
                    record['early_stopping'] = stopping._asdict()
                    if writer:
                        writer.write(done, 'validation', validation)
                    clock = time.perf_counter()
                stop_signal = asked_to_stop(done)
                if stopping.should_stop:
                    reason = 'stopped early'
                elif stop_signal and not last:
                    reason = 'interrupted'
                if reason != 'finished':
                    break
                due = done % config.checkpoint.every == 0
                if (due or (best and config.checkpoint.keep_best)) and not last:
                    settle()
                    save(checkpoints, done, state, record)
                    saved = done
                    clock = time.perf_counter()
            settle()
            record['reason'] = None if reason == 'interrupted' else reason
            done = int(state.step)
            advance(0, 'saving')
            if done > saved:
                save(checkpoints, done, state, record)
            checkpoints.wait()
        finally:
            if tracing:
                jax.profiler.stop_trace()
            if writer:
                writer.close()
    return Outcome(state, record, stop_signal)


def save(checkpoints: Checkpoints, step: int, state: TrainState, record: dict) -> None:
    """Saves, with the loss of this very step where there is one to compare by."""
    validation = record['validation']
    loss = None
    if validation is not None and validation['step'] == step:
        loss = validation['loss'] if math.isfinite(validation['loss']) else None
    checkpoints.save(step, state, record, loss)


def _divergence(step, record, task, workdir):
    documents = task.documents_of(step)
    shown = ', '.join(documents[:8]) + (', …' if len(documents) > 8 else '')
    return (
        f'the loss or its gradient was not finite in {record["skipped_in_a_row"]} '
        f'updates in a row, up to step {step} (documents {shown}): the newest '
        'checkpoint stays: lower optim.learning_rate, set '
        'optim.clip_norm=1.0, or look at the batch with '
        f'`python -m gptjax data --workdir {workdir} --step {step}`'
    )
