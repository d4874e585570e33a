"""The stage `eval`: a trained model on whole documents, beside its baselines."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gptjax import files
from gptjax.errors import UserError
from gptjax.eval.baselines import compute_baselines
from gptjax.eval.perplexity import evaluate_documents
from gptjax.models import gpt
from gptjax.parallel.mesh import batch_shards, make_mesh
from gptjax.parallel.sharding import batch_sharding
from gptjax.train.load import load


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Evaluates RUN's best checkpoint on its validation split: RUN/eval.json.

    Raises:
        UserError: RUN has no checkpoint or no documents, or the config's
            eval section makes no sense.
    """
    mesh = make_mesh(config.mesh)
    shards = batch_shards(mesh)
    if config.eval.batch_size < 1 or config.eval.batch_size % shards:
        raise UserError(
            f'eval.batch_size={config.eval.batch_size} is not divisible by '
            f'mesh.data * mesh.fsdp = {shards}: use a multiple'
        )
    trained = load(config, workdir, mesh)
    documents = read_documents(workdir / 'documents' / 'validation.jsonl')
    if config.eval.documents:
        documents = documents[: config.eval.documents]

    with jax.set_mesh(mesh):
        results = evaluate_documents(
            token_logprobs(trained, mesh),
            documents,
            trained.tokenizer,
            config.data.context,
            config.eval.stride,
            config.eval.batch_size,
        )
    evaluation = dict(
        results=results,
        baselines=compute_baselines(workdir, documents, trained.tokenizer),
        checkpoint_step=trained.step,
    )
    files.write_json(workdir / 'eval.json', evaluation)
    return evaluation


def token_logprobs(trained, mesh):
    """A function from a batch to ln P of its targets, (B, T) float32."""

    @jax.jit
    def compute(params, batch):
        model = gpt.bind(trained.settings, params)
        logits_BTV = model(batch['inputs'], batch['segments'], batch['positions'])
        targets = batch['targets'][..., None]
        chosen = jnp.take_along_axis(logits_BTV, targets, axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits_BTV, axis=-1)

    place = batch_sharding(mesh)
    return lambda batch: compute(trained.params, jax.device_put(batch, place))


def read_documents(path: Path) -> list[dict]:
    """The documents of a split, as the stage `data` wrote them."""
    if not path.exists():
        raise UserError(f'{path} is missing: run the stage data first')
    with open(path, encoding='utf-8') as lines:
        return [json.loads(line) for line in lines]
