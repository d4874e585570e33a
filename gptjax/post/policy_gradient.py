"""Reinforcement learning as a stage of the training loop; PPO and GRPO share it.

A rollout has `policy.prompts` x `policy.replies` replies. `policy.epochs` passes over
them are made, in updates of `train.batch_size` replies. As in every stage, steps count
updates. Checkpoints are saved and signals are handled between rollouts. A rollout
depends only on weights, seed and step, so a resumed run generates the same rollouts.

An update without a live row (see `has_live_row`) is left out: parameters, moments and
averages stay, and only the step number advances, and the learning rate with it.

    RUN/samples/validation/00000040.json    replies of the validation after 40 updates
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError, progress_bar
from gptjax.data.training_checks import check_template
from gptjax.models import parameter_count
from gptjax.optim.optimizer import ema_params
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import is_first_process, print_once
from gptjax.parallel.sharding import put_on_mesh
from gptjax.post.experience import (
    Algorithm,
    Environment,
    collect_experience,
    describe_kl_pitfall,
    make_token_scorer,
    new_adaptive_state,
    read_adaptive_state,
)
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import metrics_per_token
from gptjax.post.policy_model import (
    PolicyModel,
    apply_compute_settings,
    freeze_policy,
    make_policy_model,
)
from gptjax.post.problems.verifiable_tasks import make_task, problems_fingerprint
from gptjax.post.reward_functions import (
    make_reward,
    on_first_process,
    rewards_fingerprint,
    verifier_reward,
)
from gptjax.post.rollout import (
    ReplyText,
    Sampler,
    generate_replies,
    make_prompt_format,
    make_sampler,
)
from gptjax.train import config_checks, init_from
from gptjax.train.load_model import Trained, model_identity, uses_lora
from gptjax.train.loop import Setup, Stage, Training, fit
from gptjax.train.step import make_train_step

SAMPLES = Path('samples', 'validation')  # in RUN
NUM_SAMPLES = 16  # of a validation


def train_policy(
    config: ConfigDict,
    workdir: Path,
    make_algorithm: Callable[[ConfigDict, Trained, PolicyModel, Mesh], Algorithm],
) -> dict:
    """Trains a policy from `config.start`, or from RUN's newest checkpoint.

    Args:
        config: from `init_from.inherit_config`.
        make_algorithm: `(config, model of start.run, policy model, mesh)` → algorithm.

    Returns:
        The summary of `Outcome`, with `rollouts` and `empty_rollouts`.

    Raises:
        UserError: fields of the config do not fit each other, a reward fails, or
            updates are not finite. Checkpoints stay.
    """
    # ---- policy, reference, problems ----------------------------------------
    check_policy(config)
    config_checks.check_dropout(config)
    mesh = make_mesh(config.mesh)
    config_checks.check_batch(config, mesh)
    config_checks.check_context(config, mesh)
    trained = init_from.load_start(config, mesh)
    identity = model_identity(trained.tokenizer, trained)
    trained = apply_compute_settings(config, trained)
    if not run_dir.has_checkpoint(workdir):
        check_template(trained.tokenizer, config.chat.template)
    prompt_format = make_prompt_format(config, 'policy', trained.tokenizer)
    task = make_task(
        config.task, config.seed, prompt_format.fits, prompt_format.room_advice
    )
    reward = on_first_process(make_reward(config.task, task))
    environment = Environment(prompt_format, task, reward)
    policy = make_policy_model(config, trained.settings)
    algorithm = make_algorithm(config, trained, policy, mesh)

    def init():
        key = jax.random.key(config.seed)
        return policy.init, trained.params, key, *algorithm.init_arguments()

    stage = Stage(
        name='policy',
        mesh=mesh,
        shapes=policy.shapes,
        axes=policy.axes,
        loss_fn=algorithm.loss_fn,
        init=init,
        identity=dict(
            identity,
            context=str(prompt_format.context),
            problems=problems_fingerprint(config.task),
            rewards=rewards_fingerprint(config.task),
            **algorithm.identity,
        ),
        make_training=partial(
            make_training,
            *(config, workdir, mesh, environment, trained, policy, algorithm),
        ),
        record=dict(
            memory=[list(values) for values in new_adaptive_state(config.policy)],
            empty_rollouts=0,  # rollouts without a live row in any update
        ),
    )
    outcome = fit(config, workdir, stage)
    return outcome.summary(
        rollouts=int(outcome.state.step) // updates_per_rollout(config),
        empty_rollouts=outcome.record['empty_rollouts'],
    )


def make_training(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    environment: Environment,
    trained: Trained,
    policy: PolicyModel,
    algorithm: Algorithm,
    setup: Setup,
) -> Training:
    """Starts the engine; defines how rollouts become updates, and the validation."""
    reference = trained.params  # never donated, so these arrays stay valid
    updates = updates_per_rollout(config)
    if is_first_process():  # a resumed run writes these samples again
        for path in (workdir / SAMPLES).glob('[0-9]*.json'):
            if int(path.stem) > int(setup.state.step):
                path.unlink()
    with progress_bar('starting the engine', 0):
        weights = policy.merge(setup.state.params, reference)
        sampler = make_sampler(
            trained._replace(params=weights), config.policy, config.data.context
        )
        del weights
    setup.stack.enter_context(contextlib.closing(sampler))
    microbatch_rows = config.train.batch_size // config.train.accumulation
    algorithm = algorithm._replace(
        score_tokens=score_at_temperature_1(config, trained, policy, algorithm)
    )
    score_tokens = make_token_scorer(algorithm, mesh, microbatch_rows)
    critic_step = setup.step
    if algorithm.warm_up and config.optim.weight_decay:
        # Weight decay would move the policy even where its gradient is 0.
        critic_step = make_train_step(
            algorithm.loss_fn,
            freeze_policy(setup.optimizer),
            setup.abstract,
            config.train.accumulation,
            config.seed,
        )
    frozen = (reference,) if uses_lora(config) else ()

    def update(state, step, record):
        number = step // updates
        adaptive = read_adaptive_state(record['memory'])
        sampler.update_weights(policy.merge(state.params, reference), f'step {step}')
        batch, metrics, next_adaptive = collect_experience(
            config,
            environment,
            sampler.complete,
            partial(score_tokens, state.params, reference),
            algorithm,
            adaptive,
            number,
        )
        warming_up = number < algorithm.warm_up
        control = dict(
            coefficient=np.float32(adaptive.kl.coefficient),
            policy=np.float32(not warming_up),
        )
        state, steps = update_on_rollout(
            config,
            critic_step if warming_up else setup.step,
            state,
            batch,
            (control, *frozen),
            step,
            algorithm,
            mesh,
        )
        if steps:
            metrics.update(mean_metrics(steps, algorithm.token_metrics))
            metrics['good'] = [values['good'] for values in steps]
        else:
            record['empty_rollouts'] += 1
        record['memory'] = [list(values) for values in next_adaptive]
        metrics['empty_rollouts'] = record['empty_rollouts']
        return state, metrics

    def validate(state, done):
        params = ema_params(state.opt_state, state.params)
        sampler.update_weights(policy.merge(params, reference), f'step {done}')
        metrics, samples = evaluate_policy(config, environment, sampler)
        if is_first_process():
            path = workdir / SAMPLES / f'{done:08d}.json'
            storage.write_json(path, dict(step=done, samples=samples))
        return metrics

    replies = config.policy.prompts * config.policy.replies
    print_once(
        f'policy: {parameter_count.num_params(trained.settings):,} parameters on '
        f'{mesh.size} {"device" if mesh.size == 1 else "devices"}, a rollout has '
        f'{replies:,} replies and gives {updates:,} '
        f'{"update" if updates == 1 else "updates"}'
    )
    print_once(f'policy: {describe_truncation(config.policy)}')
    if pitfall := describe_kl_pitfall(config.policy):
        print_once(f'policy: {pitfall}')
    return Training(
        update=update,
        validate=validate,
        steps_per_update=updates,
        fetch_late=False,
        validate_first=True,
        unit='rollouts',
        describe=lambda metrics: (
            f'reward {metrics["reward"]:.3f}, kl {metrics["kl"]:.3f}, '
            f'truncated {metrics["truncation_rate"]:.1%}'
        ),
    )


def score_at_temperature_1(
    config: ConfigDict, trained: Trained, policy: PolicyModel, algorithm: Algorithm
) -> Callable:
    """`score_tokens` with `at_temperature_1`: log-probabilities as the engine's.

    At another `policy.temperature` this takes one more forward pass.
    """
    if config.policy.temperature == 1.0:
        return algorithm.score_tokens

    def score_tokens(params, reference, batch):
        scores = algorithm.score_tokens(params, reference, batch)
        logprobs_BT, _ = token_logprobs(
            trained.settings,
            policy.compute(params, reference),
            batch,
            chunk=config.train.loss_chunk,
        )
        return dict(scores, at_temperature_1=logprobs_BT)

    return score_tokens


def update_on_rollout(
    config: ConfigDict,
    train_step: Callable,
    state,
    batch: dict,
    step_arguments: tuple,
    first: int,
    algorithm: Algorithm,
    mesh: Mesh,
) -> tuple:
    """Makes the updates of a rollout: `policy.epochs` passes, shuffled each time.

    Updates without a live row are left out.

    Args:
        batch: arrays on the host, with a row for each reply.
        step_arguments: arguments of `train_step` after state and batch.
        first: the number of the first update.

    Returns:
        (state, the metrics of each update that was made, on the host).
    """
    rows, B = config.train.batch_size, len(batch['inputs'])
    number, steps = first, []
    for epoch in range(config.policy.epochs):
        order = np.random.default_rng([config.seed, first, epoch]).permutation(B)
        for first_row in range(0, B, rows):
            chosen = np.sort(order[first_row : first_row + rows])
            arrays = {name: array[chosen] for name, array in batch.items()}
            if not has_live_row(config.policy, algorithm, arrays):
                state = state._replace(step=state.step + 1)
            else:
                if algorithm.extra_arrays:
                    arrays.update(algorithm.extra_arrays(number, arrays))
                state, metrics = train_step(
                    state, put_on_mesh(arrays, mesh), *step_arguments
                )
                steps.append(metrics)
            number += 1
    return state, [{n: float(value) for n, value in m.items()} for m in steps]


def has_live_row(policy: ConfigDict, algorithm: Algorithm, arrays: dict) -> bool:
    """Whether a row of an update counts in a term of the loss.

        term                            live rows
        advantages                      replies whose advantages are not 0
        KL in the loss, entropy,        replies with weight
        values of a critic
        pretraining text (PPO-ptx)      all rows of text

    Replies that only fill the rollout of dynamic sampling have no weight. Without a
    gradient too, the optimizer would move the parameters, by momentum and weight decay.

    Args:
        arrays: of the update.
    """
    if algorithm.extra_arrays:
        return True
    if policy.kl_loss or policy.entropy or algorithm.has_critic:
        return bool(np.any(arrays['weights']))
    return bool(np.any(arrays['advantages']))


def mean_metrics(steps: list[dict], token_metrics) -> dict[str, float]:
    """Means over the updates of a rollout, and the ratio of the first update.

    `first_ratio` is 1 if the old log-probabilities are those of the current policy.
    """
    steps = [metrics_per_token(metrics, token_metrics) for metrics in steps]
    means = {
        name: float(np.mean([metrics[name] for metrics in steps]))
        for name in steps[0]
        if name not in ('good', 'tokens', 'reply_tokens')
    }
    return dict(means, first_ratio=float(steps[0]['ratio']))


def evaluate_policy(
    config: ConfigDict, environment: Environment, sampler: Sampler
) -> tuple[dict[str, float], list[dict]]:
    """(metrics, samples) of greedy replies to the validation problems.

    `loss`, which chooses the best checkpoint, is 1 - accuracy, or without a verifier
    the negative reward. The samples are the first replies, for RUN/samples/validation.
    """
    prompt_format, task, reward = environment
    problems = task.validation(config.task.validation)
    replies = generate_replies(
        sampler.complete, prompt_format, problems, 0.0, config.seed
    )
    texts = [ReplyText.of(reply) for reply in replies]
    rewards = reward(problems, texts)
    metrics = dict(reward=float(np.mean(rewards)))
    metrics['loss'] = -metrics['reward']
    if task.score is not None:
        scores = on_first_process(verifier_reward(task.score))(problems, texts)
        metrics['accuracy'] = float(np.mean(scores >= 1.0))
        metrics['loss'] = 1 - metrics['accuracy']
    lengths = [len(r.tokens) + (r.ending is not None) for r in replies]
    metrics['response_length'] = float(np.mean(lengths))
    metrics['truncation_rate'] = float(np.mean([r.ending is None for r in replies]))
    samples = [
        dict(
            id=problem.id,
            prompt=list(problem.messages),
            answer=problem.answer,
            reply=reply.text,
            reward=float(reward),
            tokens=length,
            truncated=reply.ending is None,
        )
        for problem, reply, reward, length in zip(
            problems, replies, rewards, lengths, strict=True
        )
    ]
    return metrics, samples[:NUM_SAMPLES]


def describe_truncation(policy: ConfigDict) -> str:
    """The line for the screen on replies that are cut off."""
    fields = ('missing_eos_penalty', 'overlong_buffer', 'mask_truncated')
    values = ', '.join(f'policy.{name}={policy[name]}' for name in fields)
    effect = 'keep their reward, without a penalty, and train the policy'
    if policy.missing_eos_penalty or policy.overlong_buffer:
        effect = 'are penalised and train the policy'
    if policy.mask_truncated:
        effect = 'are left out of the loss'
    return (
        f'replies that are cut off at policy.max_tokens={policy.max_tokens} {effect} '
        f'({values})'
    )


# ---- checks


def updates_per_rollout(config: ConfigDict) -> int:
    replies = config.policy.prompts * config.policy.replies
    return config.policy.epochs * (replies // config.train.batch_size)


def check_policy(config: ConfigDict) -> None:
    """Refuses fields of the section `policy` that do not fit each other."""
    policy, train = config.policy, config.train
    effect = 'does nothing in ppo and grpo'
    config_checks.refuse_unused(config, 'train.profile_step', effect)
    config_checks.check_unused(config, 'policy')
    if policy.kl_reward and policy.kl_loss:
        raise UserError(
            f'policy.kl_reward={policy.kl_reward} and policy.kl_loss={policy.kl_loss} '
            'would count the KL twice: set one of them to 0'
        )
    if policy.overlong_buffer > policy.max_tokens:
        raise UserError(
            f'policy.overlong_buffer={policy.overlong_buffer} is more than '
            f'policy.max_tokens={policy.max_tokens}: use at most {policy.max_tokens}'
        )
    replies = policy.prompts * policy.replies
    if replies % train.batch_size:
        raise UserError(
            f'train.batch_size={train.batch_size} does not divide the policy.prompts * '
            f'policy.replies = {replies} replies of a rollout: use a divisor'
        )
    if train.num_steps % updates_per_rollout(config):
        raise UserError(
            f'train.num_steps={train.num_steps} is not a multiple of the '
            f'{updates_per_rollout(config)} updates that a rollout gives '
            '(policy.epochs * replies / train.batch_size): use a multiple'
        )
