"""The stage `dpo`: trains a policy on preferences by DPO, IPO, KTO, ORPO or SimPO.

    pairs -> ln q of both replies under the reference policy, once -> updates of ln p

`objectives/preference_losses.py` has the losses. A batch is a function of (seed, step),
and all pairs have the same weight, whatever their length. There is no dropout: at step
0 the policy equals the reference policy, and the loss of DPO is ln 2.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from gptjax.core import artifact, run_dir
from gptjax.data import preference_pairs, training_checks
from gptjax.data.preference_pairs import PAIRS, SPLITS, read_pairs
from gptjax.models import lora
from gptjax.optim.optimizer import ema_params
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.multihost import print_once
from gptjax.parallel.sharding import put_on_mesh
from gptjax.post.objectives import preference_losses
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import reply_means, reply_sums
from gptjax.post.reference_logprobs import (
    WITHOUT_TOKENS,
    add_reference_logprobs,
    make_mismatched_arrays,
    make_pair_arrays,
    refuse_other_vocabulary,
    without_reference,
)
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train import config_checks
from gptjax.train.init_from import first_params, load_start
from gptjax.train.load_model import (
    load_base,
    load_run_tokenizer,
    model_identity,
    trained_shapes,
    uses_lora,
)
from gptjax.train.loop import Command, Setup, Stage, Training, fit, with_steps
from gptjax.train.pretrain import throughput


def train_on_pairs(config: ConfigDict, workdir: Path) -> dict:
    """Trains on RUN/pairs, from `start.run` or from RUN's newest checkpoint.

    Args:
        config: from `init_from.inherit_config`.

    Returns:
        A summary: the reason for the end, the signal, the step, the last validation.
    """
    # ---- policy and pairs ---------------------------------------------------
    mesh = make_mesh(config.mesh)
    tokenizer, model = load_run_tokenizer(config, workdir)
    pairs = {split: read_pairs(workdir, split) for split in SPLITS}
    if not run_dir.has_checkpoint(workdir):
        check_pairs(config, workdir, pairs['train'], tokenizer)
    config = with_steps(config, config.preference.epochs, len(pairs['train']))
    context, batch_size = config.data.context, config.train.batch_size
    base = load_base(config, mesh)
    frozen = () if base is None else (base.params,)
    shapes, axes = trained_shapes(config, model)
    bind_policy = make_policy(config)
    loss_fn = make_pair_loss(config, model, bind_policy)
    initial = []  # the model that a new run initialises from, loaded once

    def init():
        initial.append(base or load_start(config, mesh))
        return first_params(config, model, initial[0], mesh)

    # ---- batches ------------------------------------------------------------
    def make_training(setup: Setup) -> Training:
        if config.preference.loss not in config_checks.WITH_REFERENCE:
            splits = without_reference(pairs)
        else:
            start_model = initial[0] if initial else base
            splits = add_reference_logprobs(
                config, workdir, pairs, mesh, start_model, is_new=bool(initial)
            )
        compute_baseline = make_kto_baseline(config, model, bind_policy)
        evaluate = jax.jit(lambda params, *rest: loss_fn(params, *rest)[1])

        def load_batch(split, chosen, params):
            """The arrays of the chosen pairs, and the KTO baseline of this batch."""
            arguments = splits[split], chosen, context, tokenizer.pad_id
            baseline = np.float32(0)
            if config.preference.loss == 'kto':
                mismatched = put_on_mesh(make_mismatched_arrays(*arguments), mesh)
                baseline = compute_baseline(params, mismatched, *frozen)
            arrays = make_pair_arrays(*arguments)
            return put_on_mesh(arrays, mesh, WITHOUT_TOKENS), baseline

        def update(state, step, record):
            del record
            batch, baseline = load_batch('train', pairs_of_step(step), state.params)
            state, metrics = setup.step(state, batch, baseline, *frozen)
            # `tokens` was the number of pairs, for the means; throughput needs tokens.
            tokens = np.float32(2 * batch_size * context)
            return state, dict(metrics, pairs=metrics['tokens'], tokens=tokens)

        def validate(state, done):
            del done
            params, sums = ema_params(state.opt_state, state.params), {}
            for chosen in preference_pairs.batch_in_order(
                len(pairs['validation']), batch_size
            ):
                batch, baseline = load_batch('validation', chosen, params)
                metrics = evaluate(params, batch, None, baseline, *frozen)
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            count = sums.pop('tokens')
            return {name: value / count for name, value in sums.items()}

        def pairs_of_step(step):
            return preference_pairs.choose_pairs(
                len(pairs['train']), batch_size, config.seed, step
            )

        print_once(
            f'dpo: {config.preference.loss}, {config.train.num_steps:,} steps of '
            f'{batch_size} pairs of 2 x {context:,} tokens'
        )
        return Training(
            update=update,
            validate=validate,
            documents_of=lambda step: [
                pairs['train'][number].id for number in pairs_of_step(step)
            ],
            **throughput(config, model, mesh),
        )

    data = artifact.require(workdir / 'pairs', 'dpo')['fingerprint']
    stage = Stage(
        name='dpo',
        mesh=mesh,
        shapes=shapes,
        axes=axes,
        loss_fn=loss_fn,
        init=init,
        identity=dict(model_identity(tokenizer, base), data=data),
        make_training=make_training,
    )
    return fit(config, workdir, stage).summary()


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot train, before data is prepared."""
    config_checks.check_config(config)
    config_checks.check_unused(config, 'preference')
    config_checks.check_start_template(config)
    config_checks.check_dropout(config)


def check_pairs(config: ConfigDict, workdir: Path, pairs, tokenizer) -> None:
    """Refuses pairs or a reference that would ruin the policy."""
    preference_pairs.refuse_labels(pairs, config.preference.loss)
    rows = [
        row for pair in pairs for row in pair.rows if row is not preference_pairs.EMPTY
    ]
    template = config.chat.template
    training_checks.check_replies(rows, tokenizer, template, 'preference.path')
    if run := config.preference.reference:
        folder = Path(run).expanduser().absolute()
        refuse_other_vocabulary(run, load_tokenizer(folder / 'tokenizer'), tokenizer)


# ---- losses


def make_pair_loss(config: ConfigDict, model: FrozenConfigDict, bind_policy):
    """`(params, batch, key, baseline, *frozen) -> (loss, metrics)`, summed over pairs.

    Args:
        model: the settings of the model.
        bind_policy: (params, *frozen) -> the parameters of the model.
    """
    section = config.preference

    def loss_fn(params, batch, key, baseline, *frozen):
        del key  # no dropout: the reference policy has none
        rows = {
            name: batch[name].reshape(-1, batch[name].shape[-1])
            for name in ('inputs', 'targets', 'segments', 'positions')
        }
        mask_BT = batch['weights'].reshape(rows['inputs'].shape)
        logprobs_BT, _ = token_logprobs(
            model, bind_policy(params, *frozen), rows, chunk=config.train.loss_chunk
        )
        # N pairs of (chosen, rejected).
        sums_N2 = reply_sums(logprobs_BT, mask_BT).reshape(-1, 2)
        means_N2 = reply_means(logprobs_BT, mask_BT).reshape(-1, 2)
        reference_N2 = batch['reference']
        compute_loss = {
            'dpo': lambda: preference_losses.dpo(
                *sums_N2.T, *reference_N2.T, section.beta, section.label_smoothing
            ),
            'ipo': lambda: preference_losses.ipo(
                *sums_N2.T, *reference_N2.T, section.beta
            ),
            'kto': lambda: kto_of_pairs(section, sums_N2, reference_N2, baseline),
            'orpo': lambda: preference_losses.orpo(*means_N2.T, section.odds_weight),
            'simpo': lambda: preference_losses.simpo(
                *means_N2.T, section.beta, section.margin
            ),
        }[section.loss]
        if 'labels' in batch:
            return sum_labelled(section, sums_N2, means_N2, batch, baseline)
        loss_N, metrics = compute_loss()
        nll_N = preference_losses.nll(means_N2[:, 0])
        if section.nll:
            loss_N += section.nll * nll_N
        metrics.update(
            loss=loss_N,
            nll=nll_N,
            chosen_logprob=sums_N2[:, 0],
            rejected_logprob=sums_N2[:, 1],
        )
        counts_N = batch['counts']
        sums = {name: jnp.sum(value * counts_N) for name, value in metrics.items()}
        return sums['loss'], dict(sums, tokens=jnp.sum(counts_N))

    return loss_fn


def kto_of_pairs(section, sums_N2, reference_N2, baseline):
    """KTO with the metrics of a pair: both replies of a pair are examples."""
    loss_N2, rewards = preference_losses.kto(
        sums_N2,
        reference_N2,
        jnp.array([True, False]),
        baseline,
        section.beta,
        section.desirable_weight,
        section.undesirable_weight,
    )
    chosen_N = rewards['desirable_reward'][:, 0]
    rejected_N = rewards['undesirable_reward'][:, 1]
    margin_N = chosen_N - rejected_N
    metrics = dict(
        chosen_reward=chosen_N,
        rejected_reward=rejected_N,
        margin=margin_N,
        accuracy=(margin_N > 0).astype(jnp.float32),
        kto_baseline=jnp.full_like(margin_N, baseline),
    )
    return jnp.mean(loss_N2, axis=1), metrics


def sum_labelled(section, sums_N2, means_N2, batch: dict, baseline):
    """(loss, metrics) of KTO of labelled replies, two in a slot, summed over slots.

    A slot counts as its number of replies / 2, so that a pair whose replies are
    labelled has the loss of `kto_of_pairs`.
    """
    labels_N2, counts_N = batch['labels'], batch['counts']
    desirable_N2, present_N2 = labels_N2 == 1, labels_N2 >= 0
    loss_N2, rewards = preference_losses.kto(
        sums_N2,
        batch['reference'],
        desirable_N2,
        baseline,
        section.beta,
        section.desirable_weight,
        section.undesirable_weight,
    )
    reward_N2 = rewards['desirable_reward'] + rewards['undesirable_reward']
    sign_N2 = jnp.where(desirable_N2, 1.0, -1.0)
    margin_N2 = sign_N2 * (reward_N2 - section.beta * baseline)
    # Two times the language loss of liked replies: a pair has one of them.
    nll_N2 = 2 * jnp.where(desirable_N2, preference_losses.nll(means_N2), 0.0)
    metrics = dict(
        **rewards,
        margin=margin_N2,
        accuracy=(margin_N2 > 0).astype(jnp.float32),
        kto_baseline=jnp.full_like(margin_N2, baseline),
        loss=loss_N2 + section.nll * nll_N2 if section.nll else loss_N2,
        nll=nll_N2,
    )
    sums = {
        name: jnp.sum(jnp.where(present_N2, value, 0.0)) / 2
        for name, value in metrics.items()
    }
    return sums['loss'], dict(sums, tokens=jnp.sum(counts_N))


def make_kto_baseline(config: ConfigDict, model: FrozenConfigDict, bind_policy):
    """`(params, mismatched, *frozen) -> the KTO baseline of a batch`, a scalar."""

    def compute_baseline(params, mismatched, *frozen):
        logprobs_BT, _ = token_logprobs(
            model,
            bind_policy(params, *frozen),
            mismatched,
            chunk=config.train.loss_chunk,
        )
        sums_N = reply_sums(logprobs_BT, mismatched['weights'])
        return preference_losses.kto_baseline(sums_N, mismatched['reference'])

    return jax.jit(compute_baseline)


def make_policy(config: ConfigDict):
    """`(params, *frozen) -> parameters of the model`; LoRA adapts the frozen ones."""
    if not uses_lora(config):
        return lambda params: params
    scale = lora.lora_scale(config.lora)
    return lambda params, base: lora.adapt(base, params, scale)


COMMAND = Command(
    train_on_pairs,
    check_config,
    artifacts=lambda config: (PAIRS,),
    sections=('preference', 'start'),
    example='configs/dpo.py',
)
