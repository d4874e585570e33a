"""The flags of the command line, and one-line messages for errors in them."""

import os
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from gptjax.core import run_dir
from gptjax.core.console import UserError

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    'config', None, 'configs/NAME.py[:variant]; default: RUN/config.json'
)
flags.DEFINE_string('workdir', None, 'the run directory')
flags.DEFINE_integer(
    'step',
    None,
    'data: print the batch of this step; other stages: use this checkpoint',
)
flags.DEFINE_multi_string('prompt', None, 'sample: continue this text')
flags.DEFINE_integer('max_tokens', None, 'sample, eval: maximum tokens of a reply')
flags.DEFINE_integer('seed', 0, 'sample, eval: seed of sampling')
flags.DEFINE_float('temperature', None, 'sample, eval: temperature; 0: greedy')
flags.DEFINE_integer('top_k', None, 'sample, eval: sample from the k likeliest; 0: all')
flags.DEFINE_float(
    'top_p', None, 'sample, eval: sample from this share of the probability'
)
flags.DEFINE_float(
    'min_p', None, 'sample: minimum probability relative to the likeliest'
)
flags.DEFINE_string(
    'against', None, 'bench: compare with torch, or bench decode with llama.cpp'
)
flags.DEFINE_string(
    'against_python',
    None,
    'bench: the Python that has these packages; default: this one',
)
flags.DEFINE_string(
    'tasks', None, 'eval: perplexity, reply, choice, dialogue, FILE.jsonl, …'
)
flags.DEFINE_string('json', None, 'eval: also write the results to this file')
flags.DEFINE_string('compare', None, 'eval: compare two runs or result files, A B')
flags.DEFINE_string('host', '127.0.0.1', 'serve: address to listen on')
flags.DEFINE_integer('port', 8000, 'serve: port to listen on; 0: any free port')
flags.DEFINE_multi_string('beside', [], 'serve: also serve this model, RUN or RUN@STEP')
flags.DEFINE_string(
    'api_key_file', None, 'serve: file with the key that every request needs'
)
flags.DEFINE_list(
    'allowed_hosts', [], 'serve: host names of this server behind a proxy'
)
flags.DEFINE_integer('slots', 8, 'serve, bench decode: replies generated at once')
flags.DEFINE_integer('queue', 64, 'serve: maximum number of waiting requests')
flags.DEFINE_float('time_limit', 300.0, 'serve: maximum seconds of a request')
flags.DEFINE_enum(
    'weights',
    'whole',
    ['whole', 'int8'],
    'serve, chat: dtype of the weights; eval: measure the cost of int8',
)
flags.DEFINE_enum('cache', 'whole', ['whole', 'int8'], 'same for the key-value cache')
flags.DEFINE_string(
    'draft',
    None,
    'serve, chat, bench decode: run of a smaller model that drafts tokens',
)
flags.DEFINE_integer('guesses', 4, 'with --draft: tokens drafted in a step')
flags.DEFINE_bool(
    'multihost', False, 'this is one of several processes on a TPU or GPU cluster'
)


RUN = ('config', 'workdir')
HOSTS = (*RUN, 'multihost')  # for stages that can run on several hosts
ENGINE = ('weights', 'cache', 'draft', 'guesses')
DRAWN = ('max_tokens', 'temperature', 'top_k', 'top_p', 'seed')


def parse(argv: list[str], stages, variant_flags) -> tuple[str | None, list[str]]:
    """(stage, positional arguments); (None, []) for --help.

    Raises UserError for a flag that the stage does not read. `variant_flags` has the
    flags of 'bench data', 'eval --compare' and so on.
    """
    if len(argv) < 2 or {'--help', '-h', '--helpfull', '-help'} & set(argv):
        return None, []
    stage = argv[1]
    if stage not in stages:
        raise UserError(f'no stage {stage!r}: use one of {", ".join(stages)}')
    try:
        words = FLAGS([argv[0], *argv[2:]])
    except _FLAG_ERRORS as error:
        raise UserError(_explain(error, argv)) from error
    if not isinstance(FLAGS.config, ConfigDict | None):
        path = FLAGS['config'].config_filename
        raise UserError(f'--config={path}: no such file: use e.g. configs/tiny.py')
    flags_read = {name: stages[name].flags for name in stages} | variant_flags
    _refuse_unread_flags(stage, words[1:], flags_read)
    return stage, words[1:]


def _refuse_unread_flags(stage, words, flags_read):
    """Raises UserError for a flag that the stage would ignore."""
    variant = stage
    if stage == 'bench' and words:
        variant = f'bench {words[0]}'
    elif stage == 'eval' and FLAGS.compare is not None:
        variant = 'eval --compare'
    elif stage == 'eval' and (FLAGS.weights, FLAGS.cache) != ('whole', 'whole'):
        variant = 'eval --weights and --cache'
    names = flags_read.get(variant)
    if names is None:  # an unknown benchmark
        return
    for flag in own_flags():
        if not flag.present or flag.name in names:
            continue
        if flag.name == 'multihost':
            raise UserError(
                f'--multihost: `{variant}` runs on one host: leave this flag out, and '
                'start the command on one host'
            )
        others = [f'--{name}' for name in names if name not in HOSTS]
        others = f' (it reads {", ".join(others)})' if others else ''
        raise UserError(f'--{flag.name}: `{variant}` ignores it{others}: leave it out')


_FLAG_ERRORS = (
    *(flags.Error, AttributeError, ImportError, KeyError, OSError, SyntaxError),
    *(TypeError, ValueError),
)


def _explain(error, argv):
    """A one-line message for an error in the flags."""
    errors = [error]  # the last one, the innermost cause, is the most exact
    while errors[-1].__cause__ or errors[-1].__context__:
        errors.append(errors[-1].__cause__ or errors[-1].__context__)
    cause = errors[-1]
    if isinstance(error, flags.UnrecognizedFlagError) and '.' in error.flagname:
        return f'--{error.flagname}: add --config, whose field this flag changes'
    if isinstance(cause, SyntaxError):
        return (
            f'--config: {cause.filename}: line {cause.lineno} is not valid Python: '
            'correct it'
        )
    for nested in errors:
        if message := _explain_config_file_error(nested, argv):
            return message
    if isinstance(cause, OSError):
        return f'--config: {cause.filename}: {cause.strerror}: correct the path'
    if isinstance(cause, AttributeError | KeyError) and cause.args:
        name = str(cause.args[0]).split("'")[0].strip('"')
        fields = [word.split('=')[0] for word in argv if word.startswith('--config.')]
        field = next((f for f in fields if name in f.split('.')), None)
        if field:
            return f'{field}: no such config field: see gptjax/core/schema.py'
    message = _first_line(error)
    message = message if str(cause) in message else str(cause)
    return message if isinstance(error, flags.Error) else f'--config: {message}'


def _explain_config_file_error(error, argv):
    """'FILE: line N: Type: message', or None if the error is not in the config file."""
    words = [word.removeprefix('--config=') for word in run_dir.config_words(argv)]
    files = {os.path.abspath(word.split(':')[0]) for word in words}
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if os.path.abspath(frame.filename) in files]
    if not frames:
        return None
    message, frame = _first_line(error), frames[-1]
    if isinstance(error, ValueError) and (frame.line or '').startswith('raise '):
        return (
            f'--config: {message}'  # a message that the config file wrote for its user
        )
    line = f'{frame.filename}: line {frame.lineno}'
    if 'since the config is locked' in message:
        field = message.split('"')[1]
        return f'--config: {line}: {field}: no such field (see gptjax/core/schema.py)'
    return f'--config: {line}: {type(error).__name__}: {message}'


def _first_line(error):
    return str(error).strip().split('\n')[0]


def own_flags() -> list[flags.Flag]:
    """The flags that this file defines."""
    return FLAGS.flags_by_module_dict()[__name__]


def changed_fields() -> dict:
    """The config fields that flags change, such as 'optim.ema', and their values."""
    return config_flags.get_override_values(FLAGS['config'])


def refuse_words(words: list[str]) -> None:
    """Raises UserError for positional arguments, which most stages do not have."""
    if words:
        raise UserError(f'{words[0]!r}: this stage has no such argument: see --help')


def usage(stages) -> str:
    """The text of --help."""
    stage_lines = '\n'.join(f'  {name:12} {stages[name].help}' for name in stages)
    # absl adds a second line to the help of a flag that can be repeated.
    flag_lines = '\n'.join(
        f'  --{flag.name:14} {flag.help.splitlines()[0].rstrip(";")}'
        for flag in own_flags()
    )
    return (
        'python -m gptjax STAGE --config configs/NAME.py --workdir RUN '
        '[--config.field=value …]\n\n'
        f'Stages, in order:\n{stage_lines}\n\nFlags:\n{flag_lines}\n\n'
        'Every field of gptjax/core/schema.py is a flag, such as '
        '--config.optim.learning_rate=3e-4'
    )
