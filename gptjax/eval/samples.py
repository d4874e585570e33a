"""The stage `sample`: what a trained model says."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax import files
from gptjax.errors import UserError
from gptjax.infer.generate import generate
from gptjax.infer.sampling import Sampling, check_sampling
from gptjax.parallel.mesh import make_mesh
from gptjax.train.load import load


def sample(
    config: ConfigDict, workdir: Path, prompts: list[str] | None = None, seed: int = 0
) -> list[dict]:
    """Prints a text for each prompt as it is drawn, and returns them.

    Without prompts the config's are taken, and the texts become
    RUN/samples.json, which the report shows.

    Raises:
        UserError: RUN has no checkpoint, a prompt is too long, or a setting is
            out of its range.
    """
    settings = config.sample
    sampling = Sampling(
        settings.temperature, settings.top_k, settings.top_p, settings.min_p
    )
    check_sampling(sampling)
    if settings.max_tokens < 1:
        raise UserError(
            f'sample.max_tokens={settings.max_tokens}: use a positive number'
        )
    if not 0 <= seed < 2**31:
        raise UserError(f'--seed={seed}: use a number from 0 to {2**31 - 1}')
    trained = load(config, workdir, mesh_of_one_text(config))
    texts = []
    for number, prompt in enumerate(prompts or settings.prompts):
        print(f'--- {prompt!r}')
        text = _complete(trained, prompt, settings.max_tokens, sampling, seed + number)
        record = dict(prompt=prompt, text=text, seed=seed + number, step=trained.step)
        texts.append(
            dict(record, **{n: float(v) for n, v in sampling._asdict().items()})
        )
    if not prompts:
        files.write_json(workdir / 'samples.json', texts)
    return texts


def mesh_of_one_text(config: ConfigDict) -> Mesh:
    """The tensor axis alone, where there are devices for it; else one device."""
    devices = jax.devices()
    tensor = len(devices) if config.mesh.tensor == -1 else config.mesh.tensor
    section = ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1))
    if tensor <= len(devices):
        section.tensor = tensor
    return make_mesh(section, devices[: section.tensor])


def _complete(trained, prompt, max_tokens, sampling, seed):
    """The prompt and its continuation, printed piece by piece."""
    tokenizer = trained.tokenizer
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    stream = tokenizer.stream()
    pieces = [prompt]
    print(prompt, end='', flush=True)
    with jax.set_mesh(jax.tree.leaves(trained.params)[0].sharding.mesh):
        drawn = generate(
            trained.settings,
            trained.params,
            [tokens],
            max_tokens,
            sampling,
            seeds=[seed],
            stop=tokenizer.eos_id,
        )
        for token in drawn:
            pieces.append(stream.push(int(np.asarray(token)[0])))
            print(pieces[-1], end='', flush=True)
    pieces.append(stream.finish())
    print(pieces[-1])
    return ''.join(pieces)
