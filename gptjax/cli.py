"""The command line: runs one stage with its flags.

A stage imports its modules when it runs, so that `--help` prints at once and
TensorFlow is loaded only to read data.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptjax import command_line
from gptjax.check_stage import run_check
from gptjax.command_line import DRAWN, ENGINE, FLAGS, LAUNCHED, RUN, TUNED
from gptjax.convert_stages import run_export, run_import
from gptjax.core import process, run_dir, storage
from gptjax.core.console import UserError
from gptjax.core.process import CTRL_C, INTERRUPTED
from gptjax.model_stages import run_bench, run_chat, run_eval, run_sample, run_serve
from gptjax.open_run import (
    HELD,
    given_workdir,
    make_artifacts,
    open_run,
    open_training,
)
from gptjax.scaling_stage import run_scaling
from gptjax.sharing_stages import run_pack, run_report, run_unpack
from gptjax.tune_stage import run_lr_range, run_seeds, run_transfer, run_tune

# Without these, TensorFlow prints messages about hardware that it does not use.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

USER_ERROR = 2


def main(argv: list[str]) -> int:
    """Runs one stage; returns the exit code: 0, 2 for a UserError, or of a signal."""
    before = process.install_handlers()
    try:
        stage, words = command_line.parse(argv, STAGES, VARIANT_FLAGS)
        if stage is None:
            print(command_line.usage(STAGES))
            return 0
        return STAGES[stage].run(words) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print('\ninterrupted; run the same command to continue', file=sys.stderr)
        return CTRL_C
    except Exception as error:
        workdir = given_workdir()
        reason = storage.unwritable(error, workdir)
        if reason is None:
            raise
        print(
            f'error: --workdir={workdir}: cannot write there ({reason}): free some '
            'space, or use another --workdir',
            file=sys.stderr,
        )
        return USER_ERROR
    finally:
        HELD.close()
        process.restore_handlers(before)


# ---- stages of data and training -------------------------------------------------


class CommandStage(NamedTuple):
    """A stage of the command line.

    help: one line for --help.
    flags: the flags that the stage reads; None if only VARIANT_FLAGS has them.
    run: (positional arguments) -> exit code, or None for 0.
    """

    help: str
    flags: tuple[str, ...] | None
    run: Callable[[Sequence[str]], int | None]


def training(stage: str, help: str) -> CommandStage:
    """A stage that trains."""

    def run(words):
        if FLAGS.seeds is not None:
            return _end_study(run_seeds(stage, words))
        return run_training(stage, words)[0]

    return CommandStage(help, RUN, run)


def run_training(stage: str, words) -> tuple:
    """Runs a training stage; returns (exit code, config, workdir)."""
    command, config, workdir = open_training(stage, words, join=True)
    return print_summary(command.train(config, workdir), command.unit), config, workdir


def print_summary(summary: dict, unit: str = '') -> int:
    """Prints how training ended, and returns the exit code."""
    from gptjax.parallel.multihost import print_once

    step = f'step {summary["step"]:,}'
    if 'rollouts' in summary:
        step += f' (rollout {summary["rollouts"]:,})'
    if summary['reason'] == 'interrupted':
        print_once(f'saved at {step}; run the same command to continue')
        return CTRL_C if summary['signal'] == signal.SIGINT else INTERRUPTED
    validation = summary['validation']
    bits = f', {validation["bits_per_byte"]:.4f} {unit}' if unit else ''
    print_once(
        f'{summary["reason"]} at {step}: validation loss {validation["loss"]:.4f}{bits}'
    )
    return 0


def _data(words):
    from gptjax.data import ledger
    from gptjax.data.documents import DOCUMENTS

    if FLAGS.report and FLAGS.step is not None:
        raise UserError('--report: leave out --step with it')
    config, workdir = open_run(words, join=not FLAGS.report and FLAGS.step is None)
    if FLAGS.step is None:
        make_artifacts(config, workdir, [DOCUMENTS])
        if FLAGS.report:
            from gptjax.eval.report import data_report

            print(f'Made: {data_report.write_data_report(config, workdir)}')
        return
    for line in ledger.describe_batch(config, workdir, FLAGS.step):
        print(line)


def _classifier(words):
    from gptjax.data.quality import classifier_training
    from gptjax.eval.report.tables import print_table

    command_line.refuse_words(words)
    for name in ('good', 'bad', 'workdir'):
        if not FLAGS[name].value:
            raise UserError(
                f'--{name} is missing: use --good FOLDER --bad FOLDER --workdir RUN'
            )
    workdir = given_workdir()
    HELD.enter_context(run_dir.locked(workdir))
    manifest = classifier_training.build_classifier(FLAGS.good, FLAGS.bad, workdir)
    line, *tables = classifier_training.describe_classifier(manifest)
    print(line)
    for rows in tables:
        print()
        print_table(rows, right_aligned=range(1, len(rows[0])))


def _tokenizer(words):
    from gptjax.tokenizer.train_tokenizer import TOKENIZER

    config, workdir = open_run(words, join=True)
    if 'start' in config:
        raise UserError(
            f'start.run={config.start.run}: its tokenizer is used: run the stage '
            '`prepare` or `pretrain` instead'
        )
    make_artifacts(config, workdir, [TOKENIZER])


def _prepare(words):
    config, workdir = open_run(words, join=True)
    from gptjax.tokenizer.train_tokenizer import TOKENIZER
    from gptjax.train.pretrain import pretraining_artifacts

    artifacts = pretraining_artifacts(config)
    if (workdir / 'imported').is_dir():  # with a tokenizer of its own
        artifacts = [artifact for artifact in artifacts if artifact is not TOKENIZER]
    make_artifacts(config, workdir, artifacts)


def _task(words):
    from gptjax.post.problems.verifiable_tasks import PROBLEMS

    config, workdir = open_run(words, ('task',), 'configs/sums.py', join=True)
    make_artifacts(config, workdir, [PROBLEMS])
    print(f'for pretrain and sft: {workdir}/task/train.jsonl')


def _reward(words):
    if FLAGS.seeds is not None:
        return _end_study(run_seeds('reward', words))
    code, config, workdir = run_training('reward', words)
    if not code:
        from gptjax.eval import reward_evaluation

        reward_evaluation.evaluate_reward(config, workdir)
    return code


def _select(words):
    sections = ('select', 'start', 'task')
    config, workdir = open_run(words, sections, 'configs/select.py')
    from gptjax.post import select_replies

    make_artifacts(config, workdir, [select_replies.SELECTED])
    print(f'for sft: {workdir}/selected/chats.jsonl')
    print(f'for dpo and reward: {workdir}/selected/pairs.jsonl')


def _best_of(words):
    sections = ('best_of', 'start', 'task')
    config, workdir = open_run(words, sections, 'configs/best_of.py')
    from gptjax.eval import best_of

    make_artifacts(config, workdir, [])
    best_of.print_best_of(best_of.best_of(config, workdir))


def _overoptimize(words):
    sections = ('overoptimization', 'best_of', 'start', 'task')
    config, workdir = open_run(words, sections, 'configs/overoptimization.py')
    from gptjax.eval import overoptimization
    from gptjax.eval.report import overoptimization_page

    make_artifacts(config, workdir, [])
    results = overoptimization.overoptimize(config, workdir)
    if results.get('reason') == 'interrupted':
        return print_summary(results)
    overoptimization_page.print_overoptimization(results)
    print(f'Made: {workdir / overoptimization.PAGE}')


def _tune(words):
    return _end_study(run_tune(words))


def _transfer(words):
    return _end_study(run_transfer(words))


def _scaling(words):
    return _end_study(run_scaling(words))


def _end_study(summary):
    """The exit code of a study, which ended or was interrupted in a run."""
    return print_summary(summary) if summary else None


# ---- a table of runs ------------------------------------------------------------


def _stages(words):
    from gptjax.eval import stage_table, validation_table

    workdir = given_workdir()
    if not workdir:
        raise UserError('--workdir is missing: give the folder of the runs, e.g. runs')
    if FLAGS.validation:
        validation_table.write_validation_table(workdir, words)
    else:
        stage_table.write_stage_table(workdir, words)


def _launch(words):
    from gptjax.launch_stage import run_launch

    run_launch(words)


STAGES = {
    'data': CommandStage(
        'build, clean and split the documents; --report: a page; --step: a batch',
        (*RUN, 'step', 'report'),
        _data,
    ),
    'classifier': CommandStage(
        'train a quality classifier from folders of good and bad texts',
        ('good', 'bad', 'workdir'),
        _classifier,
    ),
    'tokenizer': CommandStage(
        'train the tokenizer on the training split', RUN, _tokenizer
    ),
    'prepare': CommandStage('tokenize and pack the documents', RUN, _prepare),
    'task': CommandStage(
        'write problems and their answers as training data', RUN, _task
    ),
    'check': CommandStage(
        'show what a stage would train on, and what is wrong with it; trains nothing',
        (*RUN, 'stage'),
        run_check,
    ),
    'pretrain': training('pretrain', 'train a model on the documents'),
    'sft': training(
        'sft',
        'fine-tune a pretrained model on conversations, fully or with LoRA',
    ),
    'reward': CommandStage(
        'train a reward model on ratings or preferences', RUN, _reward
    ),
    'select': CommandStage(
        'make training data from the best replies of a model', RUN, _select
    ),
    'best_of': CommandStage(
        'evaluate best-of-n: the reply with the highest reward', RUN, _best_of
    ),
    'dpo': training('dpo', 'train on preference pairs: DPO, IPO, KTO, ORPO, SimPO'),
    'ppo': training('ppo', 'reinforcement learning with a critic: PPO'),
    'grpo': training(
        'grpo',
        'reinforcement learning without a critic: GRPO, DAPO, GSPO, RLOO, …',
    ),
    'overoptimize': CommandStage(
        'measure how far a proxy reward can be optimised',
        RUN,
        _overoptimize,
    ),
    'tune': CommandStage(
        'search for good hyperparameters of a stage that trains',
        (*RUN, *TUNED),
        _tune,
    ),
    'transfer': CommandStage(
        'measure the best learning rate at several widths, with and without muP',
        (*RUN, 'space'),
        _transfer,
    ),
    'lr_range': CommandStage(
        'learning-rate range test: the loss while the learning rate rises',
        RUN,
        run_lr_range,
    ),
    'scaling': CommandStage(
        'forecast the loss of a run from smaller ones, then train and score it',
        (*RUN, 'fit', 'drop'),
        _scaling,
    ),
    'eval': CommandStage(
        'evaluate a model and its baselines; --compare A B compares two runs',
        (*RUN, *DRAWN, 'tasks', 'json', 'step', 'weights', 'cache'),
        run_eval,
    ),
    'sample': CommandStage(
        'generate text from prompts',
        (*RUN, *DRAWN, 'min_p', 'prompt', 'context', 'step', 'json'),
        run_sample,
    ),
    'report': CommandStage(
        'write an HTML page about a run; report RUN RUN2 … --to FILE.html compares',
        (*RUN, 'to', 'push', 'watts'),
        run_report,
    ),
    'stages': CommandStage(
        'write a table of several runs and their controls',
        ('workdir', 'validation'),
        _stages,
    ),
    'serve': CommandStage(
        'serve an API and a chat page on this machine',
        (
            *(*RUN, *ENGINE, 'step', 'beside', 'host', 'port', 'slots', 'queue'),
            *('time_limit', 'api_key_file', 'allowed_hosts'),
        ),
        run_serve,
    ),
    'chat': CommandStage(
        'talk to the model in the terminal', (*RUN, *ENGINE), run_chat
    ),
    'import': CommandStage(
        'make a run of the folder of a Hugging Face model',
        ('from', 'workdir', 'dtype', 'base'),
        run_import,
    ),
    'export': CommandStage(
        'write a run as the folder of a Hugging Face model',
        ('workdir', 'to', 'step', 'dtype', 'adapter'),
        run_export,
    ),
    'pack': CommandStage(
        'write a run as one file: pack RUN --to FILE', ('to',), run_pack
    ),
    'unpack': CommandStage(
        'make a run of such a file: unpack FILE --workdir RUN', ('workdir',), run_unpack
    ),
    'launch': CommandStage(
        'start a stage on other machines: launch tpu|gke|slurm|skypilot|ray',
        None,
        _launch,
    ),
    'bench': CommandStage(
        'measure: `bench data`, `train`, `many`, `decode`, `masking`',
        None,
        run_bench,
    ),
}
# The flags of stages that read other flags in some variants.
VARIANT_FLAGS = {
    'eval --compare': ('compare', 'json'),
    'eval --weights and --cache': (*RUN, 'json', 'step', 'weights', 'cache'),
    'training with --seeds': (*RUN, 'seeds'),
    **{f'launch {platform}': names for platform, names in LAUNCHED.items()},
    'bench data': RUN,
    'bench masking': (),
    'bench many': ('config',),
    'bench train': ('config', 'against', 'against_python'),
    'bench decode': (
        *(*RUN, 'step', 'slots', 'against', 'against_python'),
        *('draft', 'guesses'),
    ),
}
