"""The stage `reward`: trains a model to score conversations as people would."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, run_dir
from gptjax.core.console import UserError, progress_bar
from gptjax.data.comparisons import (
    Comparisons,
    choose_groups,
    encode_ratings,
    make_comparison_arrays,
)
from gptjax.data.ratings import BEHAVIOUR, RATINGS, read_ratings
from gptjax.models import heads, settings
from gptjax.optim.optimizer import ema_params
from gptjax.parallel.mesh import batch_shards, make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import put_on_mesh
from gptjax.post.objectives import reward_losses
from gptjax.post.reward_model import (
    WITHOUT_TOKENS,
    abstract_reward_state,
    compute_rewards,
    make_reward_scorer,
    reward_identity,
    reward_shapes,
)
from gptjax.train import config_checks, init_from
from gptjax.train.load_model import load_run_tokenizer
from gptjax.train.loop import Command, Setup, Stage, Training, fit, with_steps
from gptjax.train.pretrain import throughput


def complete_config(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with template and context from `start.run`.

    `data.context` may be longer than that of `start.run` if positions are not learned.
    """
    config = config.copy_and_resolve_references()
    if not config.chat.template:
        resumes = run_dir.has_checkpoint(workdir)
        earlier = workdir if resumes else Path(config.start.run)
        config.chat.template = run_dir.read_config(earlier).chat.template
    if config.data.context > config.model.context:
        if config.model.position == 'learned':
            raise UserError(
                f'data.context={config.data.context}: the model of start.run has '
                f'learned positions for {config.model.context} tokens: use at most '
                'that'
            )
        config.model.context = config.data.context
    return config


def train_reward(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/ratings, from `start.run` or from RUN's newest checkpoint.

    Returns:
        A summary: the reason for the end, the signal, the step, the last validation.
    """
    # ---- model and data -----------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer, model = load_run_tokenizer(config, workdir)
    context, batch_size = config.data.context, config.train.batch_size
    rated = {split: read_ratings(workdir, split) for split in ('train', 'validation')}
    with progress_bar('encoding conversations', 0):
        train, validation = (
            encode_ratings(conversations, tokenizer, config.chat.template, context)
            for conversations in rated.values()
        )
    config = with_steps(config, config.reward.epochs, len(train.values))
    mean, std = standardisation(config, train.values)
    print_once(f'{describe_data(train, context)}; {config.train.num_steps:,} steps')
    # Preference data is many sets, ratings are one large set.
    group = group_size(config, train)
    check_groups(config, group, mesh)

    def init():
        params = init_from.load_start(config, mesh).params
        init_head = lambda params, key: dict(
            params, **heads.init_reward_head(model, key)
        )
        return init_head, params, jax.random.key(config.seed)

    # ---- batches ------------------------------------------------------------
    def groups_of_step(step):
        groups = batch_size // group
        return choose_groups(train.sets, groups, group, config.seed, step)

    def make_training(setup: Setup) -> Training:
        compute_scores = make_reward_scorer(model, tokenizer, context, mesh)

        def update(state, step, record):
            del record
            rows_BG = groups_of_step(step)
            arrays = make_comparison_arrays(
                train.encoded, rows_BG, context, tokenizer.pad_id
            )
            arrays['values'] = (train.values_of(rows_BG) - mean) / std
            if train.margins is not None:
                arrays['margins'] = train.margins[rows_BG]
            state, metrics = setup.step(
                state, put_on_mesh(arrays, mesh, WITHOUT_TOKENS)
            )
            # `tokens` was the number of pairs, for the means; throughput needs tokens.
            tokens = batch_size * context
            return state, dict(metrics, pairs=metrics['tokens'], tokens=tokens)

        def validate(state, done):
            del done
            params = ema_params(state.opt_state, state.params)
            scores_N = compute_scores(params, validation.encoded)
            sets = validation.sets
            arrays = dict(values=(validation.values_of(sets) - mean) / std)
            if validation.margins is not None:
                arrays['margins'] = validation.margins[sets]
            # All pairs of each set (or all conversations), not only within groups.
            _, sums = LOSSES[config.reward.loss](config.reward, scores_N[sets], arrays)
            count = float(sums.pop('tokens'))
            return {name: float(value) / count for name, value in sums.items()}

        flops = throughput(config, model, mesh)
        logits = 6 * model.width * model.vocab_size  # a reward model computes none
        flops['flops_per_token'] = tuple(f - logits for f in flops['flops_per_token'])
        return Training(
            update=update,
            validate=validate,
            documents_of=lambda step: [
                rated['train'][row].id
                for row in groups_of_step(step).ravel()
                if row >= 0
            ],
            **flops,
        )

    data = artifact.require(workdir / 'ratings', 'reward')['fingerprint']
    shapes, axes = reward_shapes(model)
    stage = Stage(
        name='reward',
        mesh=mesh,
        shapes=shapes,
        axes=axes,
        loss_fn=make_reward_loss(model, config.reward),
        init=init,
        identity=dict(reward_identity(config, tokenizer), data=data),
        make_training=make_training,
    )
    return fit(config, workdir, stage).summary()


def make_reward_loss(model, reward: ConfigDict):
    """`loss_fn(params, batch, key) -> (loss, metrics)` by `reward.loss`."""
    compute_loss = LOSSES[reward.loss]
    dropout = any(model[name] for name in config_checks.DROPOUT)

    def loss_fn(params, batch, key):
        scores_BG = compute_rewards(model, params, batch, key if dropout else None)
        return compute_loss(reward, scores_BG, batch)

    return loss_fn


LOSSES = {
    'pairwise': lambda reward, scores_BG, batch: reward_losses.pairwise(
        scores_BG,
        batch['values'],
        reward.margin,
        reward.centring,
        batch.get('margins'),
        by_group=bool(reward.preferences),
    ),
    'regression': lambda _, scores_BG, batch: reward_losses.regression(
        scores_BG, batch['values']
    ),
    'binary': lambda _, scores_BG, batch: reward_losses.binary(
        scores_BG, batch['values']
    ),
}


def standardisation(config: ConfigDict, values_N: np.ndarray) -> tuple[float, float]:
    """(mean, standard deviation) of ratings; (0, 1) for values that are 0 or 1."""
    if config.reward.preferences or config.reward.target in BEHAVIOUR:
        return 0.0, 1.0
    return float(values_N.mean()), float(values_N.std())


def describe_data(train: Comparisons, context: int) -> str:
    """The line about training data for the screen."""
    tokens = sum(len(conversation.tokens) for conversation in train.encoded)
    longer = sum(each.dropped > 0 or each.cut for each in train.encoded)
    cut = sum(conversation.cut for conversation in train.encoded)
    return (
        f'reward: {len(train.encoded):,} conversations, {tokens:,} tokens; {longer:,} '
        f'are longer than data.context={context} and lose their first messages, '
        f'{cut:,} of them also the beginning of the last message'
    )


def group_size(config: ConfigDict, train: Comparisons) -> int:
    """The conversations of a group: those of the largest set, if there are several."""
    return config.reward.group if len(train.sets) == 1 else train.sets.shape[1]


def check_groups(config: ConfigDict, group: int, mesh) -> None:
    """Refuses a batch that does not divide into groups, micro-batches and devices."""
    train = config.train
    parts = train.accumulation * batch_shards(mesh)
    if train.batch_size % (group * parts):
        raise UserError(
            f'train.batch_size={train.batch_size} is not divisible by {group * parts}: '
            f'groups of {group} (reward.group, or the longest ranking) in {parts} '
            'parts (train.accumulation * mesh.data * mesh.fsdp): use a multiple of '
            f'{group * parts}'
        )


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot train, before data is prepared."""
    config_checks.check_unused(config, 'reward')
    config_checks.check_start_template(config)
    reward = config.reward
    target = 'preferences' if reward.preferences else reward.target
    behaviour = not reward.preferences and reward.target in BEHAVIOUR
    if reward.loss == 'binary' and not behaviour:
        raise UserError(
            f'reward.loss=binary is for {" and ".join(BEHAVIOUR)}, not for {target}: '
            'use pairwise'
        )
    if reward.loss == 'regression' and (behaviour or reward.preferences):
        raise UserError(
            f'reward.loss=regression is for ratings, not for {target}: use '
            f'{"binary" if behaviour else "pairwise"}'
        )
    mesh = make_mesh(config.mesh)
    check_groups(config, 2 if reward.preferences else reward.group, mesh)
    config_checks.check_context(config, mesh)
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    with jax.set_mesh(mesh):
        abstract_reward_state(config, model, mesh)


COMMAND = Command(
    train_reward,
    check_config,
    artifacts=lambda config: (RATINGS,),
    sections=('reward', 'start'),
    example='configs/reward.py',
    complete=complete_config,
)
