"""The command line: flags to a config to one stage function.

Stages import what they need when they run: `--help` answers at once, and
TensorFlow is loaded only where data is read.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from gptjax import files, rundir
from gptjax.errors import UserError

# TensorFlow greets on standard error, about hardware that it is not to use.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

USER_ERROR = 2
INTERRUPTED = 75  # SIGTERM stopped a run, which the same command goes on with
CTRL_C = 130  # the same, by the shell's convention

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'configs/NAME.py[:variant]; by default the one in --workdir'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'the run directory')
_STEP = flags.DEFINE_integer(
    'step', None, 'data: print the batch of this step; serve, eval: of this checkpoint'
)
_PROMPT = flags.DEFINE_multi_string('prompt', None, 'sample: go on from this text')
_MAX_TOKENS = flags.DEFINE_integer(
    'max_tokens', None, 'sample, eval: draw at most so many'
)
_SEED = flags.DEFINE_integer('seed', 0, 'sample, eval: of the draws')
_TEMPERATURE = flags.DEFINE_float(
    'temperature', None, 'sample, eval: 0 for the likeliest'
)
_TOP_K = flags.DEFINE_integer('top_k', None, 'sample, eval: draw from so many; 0: all')
_TOP_P = flags.DEFINE_float(
    'top_p', None, 'sample, eval: draw from this much probability'
)
_MIN_P = flags.DEFINE_float('min_p', None, "sample: share of the likeliest's")
_AGAINST = flags.DEFINE_string(
    'against', None, 'bench train, decode: also measure torch; decode: or llama.cpp'
)
_AGAINST_PYTHON = flags.DEFINE_string(
    'against_python', None, 'bench: the Python that has these; else this one'
)
_TASKS = flags.DEFINE_string(
    'tasks', None, 'eval: perplexity, reply, choice, FILE.jsonl … with commas between'
)
_JSON = flags.DEFINE_string('json', None, 'eval: write what was found here as well')
_COMPARE = flags.DEFINE_string('compare', None, 'eval: two runs or results, A B')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'serve: listen on this address')
_PORT = flags.DEFINE_integer('port', 8000, 'serve: and this port; 0: one that is free')
_BESIDE = flags.DEFINE_multi_string(
    'beside', [], 'serve: another model too, RUN or RUN@STEP'
)
_API_KEY_FILE = flags.DEFINE_string(
    'api_key_file', None, 'serve: holds the key that every request needs'
)
_ALLOWED_HOSTS = flags.DEFINE_list(
    'allowed_hosts', [], 'serve: names of this server, behind a proxy'
)
_SLOTS = flags.DEFINE_integer('slots', 8, 'serve, bench decode: replies drawn at once')
_QUEUE = flags.DEFINE_integer('queue', 64, 'serve: requests that may wait for a slot')
_TIME_LIMIT = flags.DEFINE_float('time_limit', 300.0, 'serve: seconds of a request')
_MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'one of several processes of a TPU or GPU cluster'
)


def main(argv: list[str]) -> int:
    """Runs one stage; the exit code: 0, 2 for a user's error, 75 and 130 as above."""
    before = _exit_on_sigterm()
    try:
        stage, words = _parse(argv)
        if stage is None:
            print(_usage())
            return 0
        return STAGES[stage](words) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from there', file=sys.stderr)
        return CTRL_C
    except Exception as error:
        why = files.unwritable(error)
        if why is None:
            raise
        print(
            f'error: --workdir={_WORKDIR.value}: cannot write there ({why}): free '
            'some space, or use another --workdir',
            file=sys.stderr,
        )
        return USER_ERROR
    finally:
        if before:
            signal.signal(signal.SIGTERM, before)


def _exit_on_sigterm():
    """Makes SIGTERM an exit code; returns what it was before, to put it back.

    Data in the making is lost, and made anew by the same command; training has
    a better way, which saves.
    """

    def leave(number, frame):
        raise SystemExit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        return None  # signals are the main thread's
    return signal.signal(signal.SIGTERM, leave)


# ---- stages -------------------------------------------------------------------


def _data(words):
    from gptjax.data import ledger

    config, workdir = _open(words)
    if _STEP.value is None:
        _make(config, workdir, [_documents])
        return
    for line in ledger.describe_batch(config, workdir, _STEP.value):
        print(line)


def _tokenizer(words):
    config, workdir = _open(words)
    _make(config, workdir, [_vocabulary])


def _prepare(words):
    config, workdir = _open(words)
    _make(config, workdir, [_documents, _vocabulary, _shards])


def _pretrain(words):
    config, workdir = _open(words)
    from gptjax.train import check, pretrain

    check.check_config(config)
    _make(config, workdir, [_documents, _vocabulary, _shards])
    summary = pretrain.pretrain(config, workdir)
    if summary['reason'] == 'interrupted':
        pretrain.say(
            f'saved at step {summary["step"]:,}; the same command goes on from there'
        )
        return CTRL_C if summary['signal'] == signal.SIGINT else INTERRUPTED
    loss = summary['validation']
    pretrain.say(
        f'{summary["reason"]} at step {summary["step"]:,}: validation loss '
        f'{loss["loss"]:.4f}, {loss["bits_per_byte"]:.4f} bits per byte'
    )


def _eval(words):
    copy = Path(_JSON.value).expanduser().absolute() if _JSON.value else None
    if copy is not None and copy.is_dir():
        raise UserError(f'--json={copy} is a folder: name a file')
    if _COMPARE.value is None:
        from gptjax.eval import evaluate

        config, workdir = _open(words)
        changes = dict(
            max_tokens=_MAX_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            seed=_SEED.value if flags.FLAGS['seed'].present else None,
        )
        config.eval.update({k: v for k, v in changes.items() if v is not None})
        wanted = 'perplexity' if _TASKS.value is None else _TASKS.value
        evaluate.evaluate(config, workdir, wanted, copy, _STEP.value)
        return
    from gptjax.eval import compare

    if len(words) != 1:
        raise UserError('--compare: name two run directories or results: --compare A B')
    compare.compare(_COMPARE.value, words[0], copy)


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


def _serve(words):
    from gptjax.serve import serve

    config, workdir = _open(words)
    options = serve.Options(
        host=_HOST.value,
        port=_PORT.value,
        step=_STEP.value,
        beside=_BESIDE.value,
        api_key_file=_API_KEY_FILE.value,
        allowed_hosts=_ALLOWED_HOSTS.value,
        slots=_SLOTS.value,
        queue=_QUEUE.value,
        time_limit=_TIME_LIMIT.value,
    )
    serve.serve(config, workdir, options)


def _chat(words):
    from gptjax.serve import terminal

    config, workdir = _open(words)
    terminal.chat(config, workdir)


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

        _no_more(words[1:])
        if _CONFIG.value is None:
            raise UserError('--config is missing: give one, as configs/bench.py')
        train.run(_CONFIG.value, _AGAINST.value, _AGAINST_PYTHON.value)
    elif words[:1] == ['decode']:
        from gptjax.bench import decode

        config, workdir = _CONFIG.value, None
        if _WORKDIR.value:
            config, workdir = _open(words[1:])
        _no_more(words[1:])
        if config is None:
            raise UserError('--config is missing: give one, as configs/bench.py:llama')
        decode.run(
            config,
            workdir,
            _STEP.value,
            against=_AGAINST.value,
            python=_AGAINST_PYTHON.value,
            slots=_SLOTS.value if flags.FLAGS['slots'].present else None,
        )
    else:
        known = '`bench decode`, `bench data` or `bench train`'
        raise UserError(f'bench {" ".join(words)}: use {known}')


def _make(config, workdir, stages):
    """Everything before training; each part at once where it is done already."""

    def make():
        for stage in stages:
            began = time.monotonic()
            told, there = stage(config, workdir)
            seconds = time.monotonic() - began
            print(f'{told} ({"found" if there else f"made in {seconds:,.0f} s"})')
        rundir.write_config(config, workdir)

    if not _MULTIHOST.value:
        make()
        return
    from gptjax.parallel import multihost

    multihost.first_makes(workdir, make)


def _documents(config, workdir):
    """(a line about RUN/documents, whether it was there)."""
    from gptjax.data import documents

    there = (workdir / 'documents' / 'manifest.json').exists()
    splits = documents.build_documents(config, workdir)['splits']
    counts = [f'{split["documents"]:,} {name}' for name, split in splits.items()]
    return f'documents: {", ".join(counts)}', there


def _vocabulary(config, workdir):
    """(a line about RUN/tokenizer, whether it was there)."""
    from gptjax.tokenizer import train

    there = (workdir / 'tokenizer' / 'manifest.json').exists()
    made = train.train_tokenizer(config, workdir)
    bytes_per_token = made['bytes_per_token']
    return (
        f'tokenizer: {made["vocab_size"]:,} pieces, {bytes_per_token:.2f} bytes each',
        there,
    )


def _shards(config, workdir):
    """(a line about RUN/prepared, whether it was there)."""
    from gptjax.data import prepare

    there = (workdir / 'prepared' / 'manifest.json').exists()
    splits = prepare.prepare(config, workdir)['splits']
    tokens = [
        f'{sum(source["predicted_tokens"] for source in sources.values()):,} {name}'
        for name, sources in splits.items()
    ]
    return f'tokens: {", ".join(tokens)}', there


STAGES = {
    'data': _data,
    'tokenizer': _tokenizer,
    'prepare': _prepare,
    'pretrain': _pretrain,
    'eval': _eval,
    'sample': _sample,
    'report': _report,
    'serve': _serve,
    'chat': _chat,
    'bench': _bench,
}
HELP = {
    'data': 'build the datasets, clean and split them; with --step, show a batch',
    'tokenizer': 'train the tokenizer on the training split',
    'prepare': 'everything up to packed shards',
    'pretrain': 'train the model, after whatever is not prepared',
    'eval': 'bits per byte, replies, choices beside baselines; --compare A B',
    'sample': 'text from prompts',
    'report': 'one HTML page of the run',
    'serve': 'an API and a chat page on this machine',
    'chat': 'talk to the model in the terminal',
    'bench': '`bench data`, `train`, `decode` [--against torch]: how fast is it?',
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
    except _FLAG_ERRORS as error:
        raise UserError(_explain(error, argv)) from error
    if not isinstance(_CONFIG.value, ConfigDict | None):
        given = flags.FLAGS['config'].config_filename
        raise UserError(f'--config={given}: no such file: give one, as configs/tiny.py')
    return stage, words[1:]


_FLAG_ERRORS = (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)


def _explain(error, argv):
    """What is wrong with the flags, in a line."""
    first = error  # the innermost error knows best what is wrong
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__
    fields = [word.split('=')[0] for word in argv if word.startswith('--config.')]
    if isinstance(error, flags.UnrecognizedFlagError) and '.' in error.flagname:
        return f'--{error.flagname} needs a --config whose field it changes'
    if isinstance(first, OSError):
        return f'--config: {first.filename}: {first.strerror}: is the path right?'
    if isinstance(first, SyntaxError):
        return f'--config: {first.filename}: line {first.lineno} is no Python: mend it'
    if isinstance(first, AttributeError | KeyError) and fields:
        name = str(first.args[0]).split("'")[0].strip('"') if first.args else ''
        field = next((f for f in fields if name in f.split('.')), fields[-1])
        return f'{field}: no such config field: configs/common.py lists them'
    told = str(error).strip().split('\n')[0]
    told = told if str(first) in told else str(first)
    return told if isinstance(error, flags.Error) else f'--config: {told}'


def _open(words):
    """(config, run directory) of a stage, checked to belong together."""
    _no_more(words)
    if not _WORKDIR.value:
        raise UserError('--workdir is missing: name the run directory, as runs/tiny')
    workdir = Path(_WORKDIR.value).expanduser().absolute()
    if _CONFIG.value is None:
        config = rundir.read_config(workdir)
    else:
        config = _CONFIG.value.copy_and_resolve_references()
        rundir.check_run(config, workdir)
    if _MULTIHOST.value:
        from gptjax.parallel import multihost

        multihost.initialize()
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
