"""The command line: flags to a config to one stage function.

Stages import what they need when they run: `--help` answers at once, and
TensorFlow is loaded only where data is read.
"""

import errno
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from gptjax import rundir
from gptjax.errors import UserError

INTERRUPTED = 75  # the exit code of a run that SIGTERM stopped and that can go on

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'configs/NAME.py[:variant]; by default the one in --workdir'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'the run directory')
_STEP = flags.DEFINE_integer('step', None, 'data: print the batch of this step')
_PROMPT = flags.DEFINE_multi_string('prompt', None, 'sample: go on from this text')
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', None, 'sample: draw at most so many')
_SEED = flags.DEFINE_integer('seed', 0, 'sample: of the draws')
_TEMPERATURE = flags.DEFINE_float('temperature', None, 'sample: 0 for the likeliest')
_TOP_K = flags.DEFINE_integer('top_k', None, 'sample: draw from so many; 0: all')
_TOP_P = flags.DEFINE_float('top_p', None, 'sample: draw from this much probability')
_MIN_P = flags.DEFINE_float('min_p', None, "sample: share of the likeliest's")
_AGAINST = flags.DEFINE_string('against', None, 'bench train: also measure torch')
_MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'one of several processes of a TPU or GPU cluster'
)


def main(argv: list[str]) -> int:
    """Runs one stage; the exit code: 0, 2 for a user's error, 75 if interrupted."""
    try:
        stage, words = _parse(argv)
        if stage is None:
            print(_usage())
            return 0
        return STAGES[stage](words) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _PLACE_ERRORS:
            raise
        where = error.filename or _WORKDIR.value
        print(
            f'error: --workdir={_WORKDIR.value}: cannot write {where}: '
            f'{error.strerror}: free some space, or use another --workdir',
            file=sys.stderr,
        )
        return 2


_PLACE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)


# ---- stages -------------------------------------------------------------------


def _data(words):
    from gptjax.data import documents, ledger

    config, workdir = _open(words)
    if _STEP.value is None:
        documents.build_documents(config, workdir)
        return
    for line in ledger.describe_batch(config, workdir, _STEP.value):
        print(line)


def _tokenizer(words):
    from gptjax.tokenizer import train

    config, workdir = _open(words)
    train.train_tokenizer(config, workdir)


def _prepare(words):
    config, workdir = _open(words)
    _make_data(config, workdir)


def _pretrain(words):
    from gptjax.train import pretrain

    config, workdir = _open(words)
    _make_data(config, workdir)
    summary = pretrain.pretrain(config, workdir)
    if summary['reason'] == 'interrupted':
        print(f'saved at step {summary["step"]}; the same command goes on from there')
        return INTERRUPTED
    loss = summary['validation']
    print(
        f'{summary["reason"]} at step {summary["step"]}: validation loss '
        f'{loss["loss"]:.4f}, {loss["bits_per_byte"]:.4f} bits per byte'
    )


def _eval(words):
    from gptjax.eval import evaluate

    config, workdir = _open(words)
    evaluate.evaluate(config, workdir)


def _sample(words):
    from gptjax.eval import samples

    config, workdir = _open(words)
    changes = dict(
        max_tokens=_MAX_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        min_p=_MIN_P.value,
    )
    config.sample.update({k: v for k, v in changes.items() if v is not None})
    samples.sample(config, workdir, _PROMPT.value, _SEED.value)


def _report(words):
    from gptjax.eval import report, summary

    _, workdir = _open(words)
    path = report.write_report(workdir)
    print(summary.last_screen(workdir, path))


def _bench(words):
    if words[:1] == ['data']:
        from gptjax.bench import data

        config, workdir = _open(words[1:])
        data.run(config, workdir)
    elif words[:1] == ['train']:
        from gptjax.bench import train

        train.run(_no_more(words[1:]), _CONFIG.value, _AGAINST.value)
    else:
        raise UserError(f'bench {" ".join(words)}: use `bench data` or `bench train`')


def _make_data(config, workdir):
    """Everything before training; each part at once where it is done already."""
    from gptjax.data import documents, prepare
    from gptjax.tokenizer import train

    documents.build_documents(config, workdir)
    train.train_tokenizer(config, workdir)
    prepare.prepare(config, workdir)


STAGES = {
    'data': _data,
    'tokenizer': _tokenizer,
    'prepare': _prepare,
    'pretrain': _pretrain,
    'eval': _eval,
    'sample': _sample,
    'report': _report,
    'bench': _bench,
}
HELP = {
    'data': 'build the datasets, clean and split them; with --step, show a batch',
    'tokenizer': 'train the tokenizer on the training split',
    'prepare': 'everything up to packed shards',
    'pretrain': 'train the model, after whatever is not prepared',
    'eval': 'loss, perplexity and bits per byte beside their baselines',
    'sample': 'text from prompts',
    'report': 'one HTML page of the run',
    'bench': '`bench data`, `bench train [--against torch]`: how fast is it?',
}


# ---- flags --------------------------------------------------------------------


def _parse(argv):
    """(stage, further words); (None, []) where help was asked for."""
    if len(argv) < 2 or {'--help', '-h', '--helpfull', '-help'} & set(argv):
        return None, []
    stage = argv[1]
    if stage not in STAGES:
        raise UserError(f'no stage {stage!r}: use one of {", ".join(STAGES)}')
    try:
        words = flags.FLAGS([argv[0], *argv[2:]])
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as e:
        raise UserError(_explain(e, argv)) from e
    if not isinstance(_CONFIG.value, ConfigDict | None):
        raise UserError('--config: no such file: give one, as configs/tiny.py')
    return stage, words[1:]


def _explain(error, argv):
    """What is wrong with the flags, in a line."""
    first = error  # the innermost error knows best what is wrong
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__
    if isinstance(error, flags.UnrecognizedFlagError) and '.' in error.flagname:
        return f'--{error.flagname} needs a --config whose field it changes'
    if isinstance(first, OSError):
        return f'--config: {first.filename}: {first.strerror}: is the path right?'
    if isinstance(first, AttributeError | KeyError):
        name = str(first.args[0]).split("'")[0].strip('"') if first.args else ''
        names = [word.split('=')[0] for word in argv if word.startswith('--config.')]
        field = next((n for n in names if name in n.split('.')), names[-1])
        return f'{field}: no such config field: configs/common.py lists them'
    told = str(error).strip().split('\n')[0]
    return told if str(first) in told else str(first)


def _open(words):
    """(config, run directory) of a stage, checked to belong together."""
    _no_more(words)
    if not _WORKDIR.value:
        raise UserError('--workdir is missing: name the run directory, as runs/tiny')
    if _MULTIHOST.value:
        from gptjax.parallel import multihost

        multihost.initialize()
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    if _CONFIG.value is None:
        return rundir.read_config(workdir), workdir
    config = _CONFIG.value.copy_and_resolve_references()
    rundir.open_run(config, workdir)
    return config, workdir


def _no_more(words):
    if words:
        raise UserError(f'what is {words[0]!r}? Flags begin with --; see --help')
    return words


def _usage():
    stages = '\n'.join(f'  {name:10} {HELP[name]}' for name in STAGES)
    own = flags.FLAGS.flags_by_module_dict()[__name__]
    listed = '\n'.join(f'  --{flag.name:12} {flag.help}' for flag in own)
    return (
        'python -m gptjax STAGE --config configs/NAME.py --workdir RUN '
        '[--config.field=value …]\n\n'
        f'Stages, in order:\n{stages}\n\nFlags:\n{listed}\n\n'
        'Every field of configs/common.py is a flag, as '
        '--config.optim.learning_rate=3e-4'
    )
