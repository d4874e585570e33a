"""The stage `import`: makes a run of the folder of a Hugging Face model.

    RUN/tokenizer/     the tokenizer
    RUN/imported/      config.json and the other small files of the folder, unchanged;
                       the manifest has the SHA-256 of all its files
    RUN/checkpoints/   one checkpoint, of step 0, without a state of the optimizer
    RUN/config.json    written last: without it, RUN is no run yet

A killed import continues with the first of these that is not complete.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from gptjax.convert.hf_folder import Folder
from gptjax.core import artifact, run_dir, storage
from gptjax.core.config import base_config
from gptjax.core.console import UserError, progress_bar
from gptjax.data.chat_template import encode_prompt, from_jinja
from gptjax.models.parameter_count import num_params
from gptjax.parallel.mesh import make_mesh
from gptjax.tokenizer.import_tokenizer import (
    FILES,
    import_tokenizer,
    read_chat_template,
)
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import IMPORTED, abstract_imported, model_identity
from gptjax.train.state import TrainState

# Files besides the weights: `export` writes those of them that RUN/imported has.
SMALL_FILES = 'config.json', 'generation_config.json', 'tokenizer.json', *FILES


def import_model(source: Path, workdir: Path, dtype: str = 'float32') -> None:
    """Makes the run; does nothing if it is complete.

    Args:
        dtype: of the weights in the checkpoint, 'float32' or 'bfloat16'. With bfloat16
            the matrix products are in bfloat16 too.

    Raises:
        UserError: the folder is damaged, or of a model that this code does not know;
            or RUN is another run.
    """
    folder = Folder(source)
    is_run = (workdir / 'config.json').exists()
    if is_run and not (workdir / IMPORTED).is_dir():
        raise UserError(
            f'--workdir={workdir} is a run that was not imported: use another --workdir'
        )
    template = from_jinja(read_chat_template(source))
    with run_dir.locked(workdir):
        with progress_bar('hashing the files', 0):
            hashes = _hash_files(folder)
        inputs = dict(hashes, dtype=dtype)
        described = dict(
            folder=str(source),
            architecture=folder.architecture,
            files=hashes,
            dtypes=folder.dtypes(),
        )
        artifact.build(
            workdir / 'tokenizer',
            dict(imported=storage.fingerprint(inputs)),
            lambda into: _write_tokenizer(folder, template, into),
        )
        artifact.build(
            workdir / IMPORTED,
            inputs,
            lambda into: _copy_small_files(folder, into, described),
        )
        _write_checkpoint(folder, workdir, dtype)
        if not is_run:
            run_dir.write_environment(workdir)
            run_dir.write_config(_make_config(folder, template, dtype), workdir)
    if template is None:
        _try_template(workdir)
    size = num_params(folder.settings)
    print(f'{folder.architecture}: {size:,} parameters in {workdir}')


def _hash_files(folder: Folder) -> dict[str, str]:
    """SHA-256 by the name of each file that is read."""
    names = [*folder.weight_files, *SMALL_FILES]
    paths = [folder.path / name for name in names]
    return {path.name: storage.sha256_of_file(path) for path in paths if path.exists()}


def _copy_small_files(folder: Folder, into: Path, described: dict) -> dict:
    for name in SMALL_FILES:
        if (folder.path / name).exists():
            storage.write_bytes(into / name, (folder.path / name).read_bytes())
    return described


def _write_tokenizer(folder: Folder, template: str | None, into: Path) -> dict:
    size = folder.settings.vocab_size
    tokenizer = import_tokenizer(folder.path, into, size, template)
    return dict(vocab_size=tokenizer.vocab_size)


def _try_template(workdir: Path) -> None:
    """Prints a warning if the model's own template refuses one message of a user."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    try:
        encode_prompt([dict(role='user', content='Hi')], tokenizer, 'turns')
    except UserError as error:
        print(f'warning: with one message of a user, {error}')


def _make_config(folder: Folder, template: str | None, dtype: str) -> ConfigDict:
    config = base_config()
    config.model = folder.model
    config.model.dtype = dtype
    config.data.context = min(config.data.context, folder.model.context)
    config.tokenizer.vocab_size = folder.settings.vocab_size
    config.chat.template = template or 'turns'  # that of the model
    return config


def _write_checkpoint(folder: Folder, workdir: Path, dtype: str) -> None:
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    checkpoints = Checkpoints(
        workdir / 'checkpoints', model_identity(tokenizer, None), keep=1
    )
    if not checkpoints.steps():
        mesh = _make_mesh(folder)
        with (
            jax.set_mesh(mesh),
            progress_bar('reading', folder.num_tensors, 'tensors') as advance,
        ):
            abstract = abstract_imported(base_config(), folder.settings, dtype, mesh)
            params = folder.read_params(abstract.params, advance)
            step = jax.numpy.zeros_like(abstract.step, device=abstract.step.sharding)
            advance(0, 'saving')
            state = TrainState(step, params, abstract.opt_state)
            checkpoints.save(0, state, dict(reason='imported'))
            checkpoints.wait()
    checkpoints.close()


def _make_mesh(folder: Folder):
    """All devices as `fsdp`, if the width divides by their number, else one."""
    devices = jax.local_devices()
    if folder.settings.width % len(devices):
        devices = devices[:1]
    sizes = dict(data=1, fsdp=len(devices), tensor=1, context=1)
    return make_mesh(ConfigDict(sizes), devices)
