"""The flags of the command line, and one-line messages for errors in them."""

import importlib.machinery
import importlib.util
import os
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from gptjax.core.config import add_missing_fields
from gptjax.core.console import UserError
from gptjax.core.files import replace_surrogates
from gptjax.core.schema import SCHEMA

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
flags.DEFINE_bool('report', False, 'data: also write a page, RUN/data.html')
flags.DEFINE_string('good', None, 'classifier: file, folder or glob of good texts')
flags.DEFINE_string('bad', None, 'classifier: the same of texts of low quality')
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
flags.DEFINE_string('json', None, 'eval, sample: also write results to this file')
flags.DEFINE_string('compare', None, 'eval: compare two runs or result files, A B')
flags.DEFINE_bool(
    'validation', False, 'stages: compare the validations of training, without eval'
)
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
flags.DEFINE_integer(
    'context',
    None,
    'serve, chat, sample: maximum tokens of a prompt and its reply together; default: '
    "the model's, at most the larger of 4096 and the run's data.context",
)
flags.DEFINE_string('from', None, 'import: the folder of a Hugging Face model')
flags.DEFINE_string('base', None, 'import: the run that an adapter of peft adapts')
flags.DEFINE_string(
    'to', None, 'export: a new folder or FILE.gguf; pack: a new file; report: a page'
)
flags.DEFINE_enum(
    'push', None, ['wandb', 'mlflow'], 'report: write metrics and report for these'
)
flags.DEFINE_float(
    'watts', 100.0, 'report: power of the machine where energy was not measured'
)
flags.DEFINE_bool('adapter', False, 'export: of a LoRA run, the adapter for peft alone')
flags.DEFINE_enum(
    'dtype',
    None,
    ['float32', 'bfloat16'],
    'import, export: dtype of the weights; import: default float32',
)

# The modules of the stages that train, each with a `COMMAND`.
TRAINING = dict(
    pretrain='gptjax.train.pretrain',
    sft='gptjax.train.sft',
    reward='gptjax.post.reward',
    dpo='gptjax.post.dpo',
    ppo='gptjax.post.ppo',
    grpo='gptjax.post.grpo',
)
# The other stages that can be started on other machines.
OTHER_STAGES = (
    *('data', 'tokenizer', 'prepare', 'task', 'select', 'best_of', 'overoptimize'),
    *('eval', 'report'),
)
flags.DEFINE_enum(
    'stage',
    None,
    [*TRAINING, *OTHER_STAGES],
    'check, tune: the stage that trains; default: that of the config; launch: any',
)
flags.DEFINE_string(
    'space',
    None,
    'tune, transfer: "optim.learning_rate=log(1e-4,1e-1); …", see search_space.py',
)
flags.DEFINE_integer('trials', None, 'tune: number of trials, of all processes')
flags.DEFINE_enum(
    'sampler', 'tpe', ['tpe', 'random', 'grid', 'cmaes'], 'tune: how values are chosen'
)
flags.DEFINE_enum(
    'pruner',
    None,
    ['median', 'hyperband', 'none'],
    'tune: which trials end early; default: median, none with several objectives',
)
flags.DEFINE_list(
    'objectives', ['loss'], 'tune: some of loss, bits_per_byte, tokens_per_second'
)
flags.DEFINE_integer('max_params', 0, 'tune: models with more are not trained')
flags.DEFINE_float('max_flops', 0.0, 'tune: runs with more are not trained')
flags.DEFINE_string(
    'storage',
    None,
    'tune: URL of a database for several machines; default: RUN/study.db',
)
flags.DEFINE_integer(
    'seeds', None, 'pretrain, sft, …: train with so many seeds, from config.seed on'
)
flags.DEFINE_string(
    'fit', None, 'scaling: fit the law to this table of parameters, tokens and losses'
)
flags.DEFINE_integer('drop', 0, 'with --fit: leave out so many of the highest losses')
flags.DEFINE_bool('dry_run', False, 'launch: print files and commands, start nothing')
flags.DEFINE_bool('yes', False, 'launch: do what costs money or ends a job')
flags.DEFINE_string('name', None, 'launch: name of the job')
flags.DEFINE_string('zone', None, 'launch: zone of the machines, such as us-west4-a')
flags.DEFINE_string('accelerator', None, 'launch: TPU slice, such as v5litepod-16')
flags.DEFINE_integer('slices', 1, 'launch: number of TPU slices')
flags.DEFINE_bool('spot', False, 'launch: cheaper machines that can be taken away')
flags.DEFINE_integer('hosts', 1, 'launch slurm: number of hosts')
flags.DEFINE_integer('gpus', 1, 'launch slurm: GPUs of each host')
flags.DEFINE_string('image', None, 'launch gke: image made of launch/Dockerfile')
flags.DEFINE_string('local_queue', 'default', "launch gke: Kueue's LocalQueue")
RUN = ('config', 'workdir')
JOB = (*RUN, 'stage', 'name', 'dry_run', 'yes')
TPUS = (*JOB, 'zone', 'accelerator', 'slices', 'spot')
LAUNCHED = dict(
    tpu=TPUS,
    gke=(*TPUS, 'image', 'local_queue'),
    slurm=(*JOB, 'hosts', 'gpus'),
    skypilot=TPUS,
    ray=TPUS,
)
TUNED = (
    *('stage', 'space', 'trials', 'sampler', 'pruner', 'objectives', 'max_params'),
    *('max_flops', 'storage'),
)
# What can run on several hosts; the config section `distributed` is about them.
SEVERAL_HOSTS = ('data', 'tokenizer', 'prepare', 'task', *TRAINING)
GONE = (
    '--multihost: this flag is gone, as hosts find each other on Cloud TPU, SLURM, GKE '
    'and Ray: leave it out; elsewhere use --config.distributed.coordinator=HOST:PORT, '
    '.num_processes and .process_id'
)
ENGINE = ('weights', 'cache', 'draft', 'guesses', 'context')
DRAWN = ('max_tokens', 'temperature', 'top_k', 'top_p', 'seed')


def parse(argv: list[str], stages, variant_flags) -> tuple[str | None, list[str]]:
    """(stage, positional arguments); (None, []) for --help.

    Raises UserError for a word that is not UTF-8, which neither a manifest nor a
    checkpoint can hold, and for a flag that the stage does not read. `variant_flags`
    has the flags of 'bench data', 'eval --compare' and so on.
    """
    if len(argv) < 2 or {'--help', '-h', '--helpfull', '-help'} & set(argv):
        return None, []
    stage = argv[1]
    if stage not in stages:
        raise UserError(f'no stage {stage!r}: use one of {", ".join(stages)}')
    for word in argv:
        if word != replace_surrogates(word):
            raise UserError(
                f'{word!a} is not UTF-8: type it in a terminal that uses UTF-8, or '
                'rename the file'
            )
    if {'--multihost', '--nomultihost'} & {word.split('=')[0] for word in argv}:
        raise UserError(GONE)
    try:
        words = FLAGS([argv[0], *argv[2:]])
    except UserError:
        raise
    except Exception as error:  # ml_collections raises errors of many types
        raise UserError(_explain_flag_error(error, argv)) from error
    flags_read = {name: stages[name].flags for name in stages} | variant_flags
    _refuse_unread_flags(stage, words[1:], flags_read)
    return stage, words[1:]


def _refuse_unread_flags(stage, words, flags_read):
    """Raises UserError for a flag that the stage would ignore."""
    variant = stage
    if stage in ('bench', 'launch') and words:
        variant = f'{stage} {words[0]}'
    elif stage == 'eval' and FLAGS.compare is not None:
        variant = 'eval --compare'
    elif stage == 'eval' and (FLAGS.weights, FLAGS.cache) != ('whole', 'whole'):
        variant = 'eval --weights and --cache'
    elif stage in TRAINING and FLAGS.seeds is not None:
        variant = 'training with --seeds'
    elif stage == 'data' and (FLAGS.report or FLAGS.step is not None):
        variant = 'data with --report or --step'
    if variant not in SEVERAL_HOSTS:
        _refuse_several_hosts(variant)
    if stage in ('tune', 'check') and FLAGS.stage not in (None, *TRAINING):
        raise UserError(
            f'--stage={FLAGS.stage}: `{stage}` needs one of {", ".join(TRAINING)}'
        )
    names = flags_read.get(variant, flags_read.get(stage))
    if names is None:  # an unknown benchmark
        return
    for flag in own_flags():
        if not flag.present or flag.name in names:
            continue
        others = [f'--{name}' for name in names if name not in RUN]
        others = f' (it reads {", ".join(others)})' if others else ''
        raise UserError(f'--{flag.name}: `{variant}` ignores it{others}: leave it out')


def _refuse_several_hosts(variant):
    """Raises UserError if a config asks for more processes than this one."""
    section = {} if FLAGS.config is None else FLAGS.config.distributed
    for field in section:
        if field in ('coordinator', 'num_processes', 'process_id', 'enabled'):
            default = SCHEMA['distributed'][field].default
            if section[field] not in (default, 'off'):
                raise UserError(
                    f'distributed.{field}={section[field]!r}: `{variant}` runs on one '
                    'host: leave this field out, and start the command on one host'
                )


def _explain_flag_error(error, argv):
    """A one-line message for an error in the flags."""
    if isinstance(error, flags.UnrecognizedFlagError) and '.' in error.flagname:
        return f'--{error.flagname}: add --config, whose field this flag changes'
    cause = error
    while cause.__cause__ or cause.__context__:  # the innermost is the most exact
        cause = cause.__cause__ or cause.__context__
    fields = [word.split('=')[0] for word in argv if word.startswith('--config.')]
    if isinstance(cause, AttributeError | KeyError) and cause.args:
        name = str(cause.args[0]).split("'")[0].strip('"')
        field = next((f for f in fields if name in f.split('.')), None)
        if field:
            return f'{field}: no such config field: see gptjax/core/schema.py'
    message = _first_line(error)
    if str(cause) not in message:
        message = f'{message}: {_first_line(cause)}'
    named = isinstance(error, flags.Error)  # the message names the flag
    return message if named else f'{", ".join(fields)}: {message}'


# ---- the config file


def read_config_file(path: str) -> ConfigDict:
    """The config of 'FILE.py' or 'FILE.py:variant', completed by the schema.

    Raises UserError, with the line of the file, for whatever its code raises.
    """
    file, colon, variant = path.partition(':')
    if file.endswith('.json') or os.path.exists(os.path.join(file, 'config.json')):
        raise UserError(
            f'--config={file}: a config is a Python file, such as configs/tiny.py: to '
            'continue a run, give its directory as --workdir and leave --config out; '
            'for a new run with the same config, first copy config.json into a new '
            'directory, and give that one'
        )
    if not os.path.isfile(file):
        raise UserError(f'--config={file}: no such file: use e.g. configs/tiny.py')
    try:
        loader = importlib.machinery.SourceFileLoader('config_file', file)
        spec = importlib.util.spec_from_loader(loader.name, loader)
        module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        config = module.get_config(*([variant] if colon else []))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_explain_config_error(error, file)) from error
    if not isinstance(config, ConfigDict):
        kind = 'nothing' if config is None else f'a {type(config).__name__}'
        raise UserError(
            f'--config={file}: get_config() returns {kind}: return a ConfigDict, such '
            'as common.base() of configs/common.py'
        )
    add_missing_fields(config)  # so that flags can change them
    return config


def _explain_config_error(error, file):
    """'--config: FILE: line N: Type: message' for an exception of a config file."""
    if isinstance(error, SyntaxError) and error.lineno:
        line = f'{error.filename}: line {error.lineno}'
        return f'--config: {line} is not valid Python: correct it'
    message, name = _first_line(error), type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    if not frames:
        return f'--config: {file}: {name}: {message}: correct it'
    code = frames[-1].line or ''
    if isinstance(error, ValueError) and code.startswith('raise '):
        return f'--config: {message}'  # the config file wrote it for its user
    line = f'{frames[-1].filename}: line {frames[-1].lineno}'
    if 'since the config is locked' in message:
        field = message.split('"')[1]
        return f'--config: {line}: {field}: no such field (see gptjax/core/schema.py)'
    return f'--config: {line}: {name}: {message or code}'


def _first_line(error):
    return str(error).strip().split('\n')[0]


class _ConfigFileParser(flags.ArgumentParser):
    """ml_collections' own parser wraps the errors of a config file in others."""

    def parse(self, path):
        return read_config_file(path).lock()


FLAGS['config'].parser = _ConfigFileParser()


# ---- lists of flags


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
