"""The loop of reinforcement learning, which PPO and GRPO share.

A rollout is `policy.prompts` x `policy.replies` replies, and `policy.epochs` passes
over them are made in updates of `train.batch_size` replies. Steps count updates, as in
every stage. Checkpoints and signals come between rollouts, and a rollout is a function
of weights, seed and step: a run that goes on draws what it would have drawn.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import console, run_dir
from gptjax.core.console import UserError
from gptjax.models import parameter_count
from gptjax.optim.optimizer import ema_params, make_learning_rate, make_optimizer
from gptjax.parallel import multihost
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import put_on_mesh
from gptjax.post import experience, rollout
from gptjax.post.check import check_dropout, check_policy, updates_of
from gptjax.post.experience import Memory, Method
from gptjax.post.objectives.kl import AdaptiveKL
from gptjax.post.objectives.loss_weights import per_token
from gptjax.post.objectives.score_shaping import RunningMoments
from gptjax.post.policy_model import Actor, computed_as, make_actor, of_critic_alone
from gptjax.post.reward_functions import make_reward, rewards_fingerprint, verifier
from gptjax.post.rollout import Sampler, Style
from gptjax.post.tasks.verifiable_tasks import Task, make_task, problems_fingerprint
from gptjax.train import begin, config_checks, init_from, loop
from gptjax.train.interruption import interruption
from gptjax.train.load_model import adapts, identity_of
from gptjax.train.metrics import MetricsWriter
from gptjax.train.state import TrainState, abstract_state, create_state
from gptjax.train.step import make_train_step


def run(
    config: ConfigDict,
    workdir: Path,
    make_method: Callable[[ConfigDict, FrozenConfigDict, Actor], Method],
) -> dict:
    """Trains a policy from `config.start`, or from RUN's newest checkpoint.

    Args:
        config: adopted from the run that it starts from; see `start.adopt`.
        workdir: RUN.
        make_method: from config, model settings and actor to the algorithm.

    Returns:
        A summary: why it ended and by which signal, steps, the newest validation.

    Raises:
        UserError: the config makes no sense, a reward fails, or updates are not
            finite; the newest checkpoint stays.
    """
    # ---- policy, reference, problems ----------------------------------------
    check_policy(config)
    check_dropout(config)
    mesh = make_mesh(config.mesh)
    config_checks.check_batch(config, mesh)
    config_checks.check_context(config, mesh)
    trained = init_from.load_start(config, mesh)
    reference = trained.params  # never donated, so it stays where it is
    model = computed_as(config, trained).settings
    style = rollout.style_of(config, trained.tokenizer)
    task = make_task(config.task, config.seed, style.fits)
    reward = make_reward(config.task, task)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        # ---- state ----------------------------------------------------------
        actor = make_actor(config, model)
        method = make_method(config, model, actor)
        optimizer = make_optimizer(config, actor.shapes)
        abstract = abstract_state(actor.shapes, optimizer, actor.axes, mesh)
        frozen = (reference,) if adapts(config) else ()
        identity = dict(
            identity_of(trained.tokenizer, trained),
            context=str(style.context),
            problems=problems_fingerprint(config.task),
            rewards=rewards_fingerprint(config.task),
            **method.identity,
        )
        checkpoints = stack.enter_context(begin.opened(config, workdir, identity))
        restored = begin.newest(checkpoints, abstract, 'policy')
        new = restored is None
        if new:
            key = jax.random.key(config.seed)
            state = create_state(
                actor.init,
                optimizer,
                abstract,
                reference,
                key,
                *(method.begin(trained, mesh) if method.begin else ()),
            )
            restored = state, new_record(config)
        state, record = restored
        record.setdefault('worse', 0)  # not in checkpoints of before it was counted
        if record['reason'] is not None:  # it had come to its end
            return _summary(state, record)

        # ---- what a rollout needs -------------------------------------------
        with console.progress_bar('making the engine', 0):
            sampler = Sampler(
                model,
                actor.plain(state.params, reference),
                trained.tokenizer,
                slots=config.policy.slots,
                tensor=config.policy.generation_tensor,
            )
        stack.enter_context(contextlib.closing(sampler))
        rows = config.train.batch_size
        score = experience.make_score(method, mesh, rows // config.train.accumulation)
        make_step = lambda optimizer: make_train_step(
            method.loss_fn, optimizer, abstract, config.train.accumulation, config.seed
        )
        step_fn = make_step(optimizer)
        warming_fn = step_fn
        if method.warm_up and config.optim.weight_decay:  # which moves what has none
            warming_fn = make_step(of_critic_alone(optimizer))
        learning_rate = make_learning_rate(config)
        updates = updates_of(config)
        first, last = int(state.step), config.train.num_steps
        # A new run writes of step 0 too, and keeps nothing of one that was killed.
        kept = -1 if new else first
        writer = MetricsWriter(workdir, kept) if multihost.is_first_process() else None
        if writer:
            stack.callback(writer.close)
            run_dir.write_environment(workdir)
        print_once(
            f'policy: {parameter_count.num_params(model):,} parameters on {mesh.size} '
            f'{"device" if mesh.size == 1 else "devices"}, a rollout has '
            f'{config.policy.prompts * config.policy.replies:,} replies and gives '
            f'{updates:,} {"update" if updates == 1 else "updates"}'
        )
        asked_to_stop = stack.enter_context(interruption())
        advance = stack.enter_context(
            console.progress_bar(
                'training', last // updates, 'rollouts', first // updates
            )
        )
        advance(0, 'compiling')

        def validate(done) -> bool:
            """Whether it is the best so far."""
            params = ema_params(state.opt_state, state.params)
            sampler.follow(actor.plain(params, reference), f'step {done}')
            found = measure(sampler, style, task, reward, config)
            record['validation'] = dict(found, step=done)
            if writer:
                writer.write(done, 'validation', found)
            lowest = record['lowest_loss']
            best = lowest is None or found['loss'] < lowest
            if best:
                record['lowest_loss'] = found['loss']
            record['worse'] = 0 if best else record['worse'] + 1
            return best

        def to_validate(done) -> bool:
            before = done - updates
            return done == last or _passes(before, done, config.train.eval_every)

        def out_of_patience() -> bool:
            return 0 < config.train.patience <= record['worse']

        @contextlib.contextmanager
        def keeping(done):
            """Saves where a reward fails: what was learnt so far is not lost."""
            try:
                yield
            except UserError:
                if done > saved:
                    loop.save(checkpoints, done, state, record)
                raise

        # ---- rollouts -------------------------------------------------------
        saved, stop_signal = first, None
        if new:
            validate(0)  # where it starts from
        elif to_validate(first) and record['validation']['step'] < first:
            validate(first)  # it failed, and the checkpoint was saved before it
        for before in range(first, last, updates):
            began = time.perf_counter()
            number, done = before // updates, before + updates
            memory = _memory(record)
            sampler.follow(actor.plain(state.params, reference), f'step {before}')
            with keeping(before):
                found = experience.collect(
                    config,
                    style,
                    task,
                    reward,
                    sampler.complete,
                    partial(score, state.params, reference),
                    method,
                    memory,
                    number,
                )
            metrics = dict(found.metrics)
            if found.empty:
                record['empty_rollouts'] += 1
                state = state._replace(step=state.step + updates)
            else:
                control = dict(
                    coefficient=np.float32(memory.kl.coefficient),
                    policy=np.float32(number >= method.warm_up),
                )
                state, told = update(
                    step_fn if number >= method.warm_up else warming_fn,
                    state,
                    found.batch,
                    (control, *frozen),
                    config,
                    before,
                    method.beside,
                    mesh,
                )
                metrics.update(summary_of(told, method.token_metrics))
                _count_bad(told, record, config, done)
            record['memory'] = [list(part) for part in found.memory]
            metrics.update(
                learning_rate=float(learning_rate(done - 1)),
                empty_rollouts=record['empty_rollouts'],
                skipped=record['skipped'],
                step_seconds=time.perf_counter() - began,
            )
            if writer:
                writer.write(done, 'train', metrics)
            advance(1, f'reward {metrics["reward"]:.3f}, kl {metrics["kl"]:.3f}')

            with keeping(done):
                best = to_validate(done) and validate(done)
            stop_signal = asked_to_stop(done)
            if out_of_patience() or (stop_signal and done < last):
                break
            due = best and config.checkpoint.keep_best
            due = due or _passes(before, done, config.checkpoint.every)
            if done < last and due:
                loop.save(checkpoints, done, state, record)
                saved = done

        done = int(state.step)
        if done == last:
            record['reason'] = 'finished'
        elif out_of_patience():
            record['reason'] = 'stopped early'
        advance(0, 'saving')
        if done > saved:
            loop.save(checkpoints, done, state, record)
        checkpoints.wait()
    return _summary(state, record, stop_signal)


# ---- the parts of the loop


def new_record(config: ConfigDict) -> dict:
    """What a run goes on from besides its arrays; JSON, kept in checkpoints."""
    return dict(
        memory=[list(part) for part in experience.new_memory(config.policy)],
        empty_rollouts=0,  # rollouts without a group of unequal scores: no update
        skipped=0,  # updates that were not finite, so far
        skipped_in_a_row=0,
        validation=None,  # the newest
        lowest_loss=None,  # of all validations
        worse=0,  # validations since that one
        reason=None,
    )


def _memory(record) -> Memory:
    kl, scores = record['memory']
    return Memory(AdaptiveKL(*kl), RunningMoments(*scores))


def update(
    step_fn: Callable,
    state: TrainState,
    batch: dict,
    others: tuple,
    config: ConfigDict,
    first: int,
    beside: Callable | None,
    mesh: Mesh,
) -> tuple[TrainState, list[dict]]:
    """The updates of a rollout: `policy.epochs` passes, each in an order of its own.

    Args:
        step_fn: of `make_train_step`.
        state: before them.
        batch: arrays of the host.
        others: what the step takes after its part of the batch.
        config: `seed`, `policy.epochs` and `train.batch_size` are read.
        first: the number of the first update.
        beside: of the method.
        mesh: where they are made.

    Returns:
        (state, the metrics of each update, on the host).
    """
    rows, B, told = config.train.batch_size, len(batch['inputs']), []
    for epoch in range(config.policy.epochs):
        order = np.random.default_rng([config.seed, first, epoch]).permutation(B)
        for start_row in range(0, B, rows):
            chosen = np.sort(order[start_row : start_row + rows])
            part = {name: array[chosen] for name, array in batch.items()}
            if beside:
                part.update(beside(first + len(told), part))
            state, metrics = step_fn(state, put_on_mesh(part, mesh), *others)
            told.append(metrics)
    return state, [{n: float(value) for n, value in m.items()} for m in told]


def summary_of(told: list[dict], token_metrics) -> dict[str, float]:
    """Means over updates; of the first, the ratio too, which is 1 if all is well."""
    told = [per_token(metrics, token_metrics) for metrics in told]
    means = {
        name: float(np.mean([metrics[name] for metrics in told]))
        for name in told[0]
        if name not in ('good', 'tokens', 'reply_tokens')
    }
    return dict(means, first_ratio=float(told[0]['ratio']))


def measure(
    sampler: Sampler, style: Style, task: Task, reward: Callable, config
) -> dict[str, float]:
    """Greedy replies to the validation problems: how many are right, and the reward.

    `loss` is what chooses the best checkpoint: the share that is wrong, or without a
    verifier the reward's negative.
    """
    items = task.validation(config.task.validation)
    replies = rollout.answers(sampler.complete, style, items, 0.0, config.seed)
    texts = [reply.text for reply in replies]
    found = dict(reward=float(np.mean(reward(items, texts))))
    found['loss'] = -found['reward']
    if task.score is not None:
        scores = verifier(task.score)(items, texts)
        found['accuracy'] = float(np.mean(scores >= 1.0))
        found['loss'] = 1 - found['accuracy']
    return dict(
        found,
        response_length=float(
            np.mean([len(r.tokens) + (r.ending is not None) for r in replies])
        ),
        truncation_rate=float(np.mean([r.ending is None for r in replies])),
    )


def _passes(before: int, done: int, every: int) -> bool:
    return done // every > before // every


def _count_bad(told, record, config, done):
    """Stops a run whose updates keep being not finite."""
    for metrics in told:
        good = metrics['good'] == 1.0
        record['skipped'] += not good
        record['skipped_in_a_row'] = 0 if good else record['skipped_in_a_row'] + 1
    if record['skipped_in_a_row'] >= config.train.max_bad_steps:
        raise UserError(
            f'the loss or its gradient was not finite in {record["skipped_in_a_row"]} '
            f'updates in a row, up to step {done}: the newest checkpoint stays: '
            'lower optim.learning_rate'
        )


def _summary(state, record, stop_signal=None):
    outcome = loop.Outcome(state, record, stop_signal)
    return outcome.summary(empty_rollouts=record['empty_rollouts'])
