"""The command line: each stage, from its flags to one function.

Stages import what they need when they run: `--help` answers at once, and
TensorFlow is loaded only where data is read.
"""

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

from gptjax import command, files, rundir
from gptjax.command import FLAGS
from gptjax.errors import UserError

# TensorFlow greets on standard error, about hardware that it is not to use.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

USER_ERROR = 2
INTERRUPTED = 75  # SIGTERM stopped a run, which the same command goes on with
CTRL_C = 130  # the same, by the shell's convention


def main(argv: list[str]) -> int:
    """Runs one stage; the exit code: 0, 2 for a user's error, 75 and 130 as above."""
    before = _take_signals()
    try:
        stage, words = command.parse(argv, STAGES)
        if stage is None:
            print(command.usage(HELP))
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
            f'error: --workdir={FLAGS.workdir}: cannot write there ({why}): free '
            'some space, or use another --workdir',
            file=sys.stderr,
        )
        return USER_ERROR
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_signals():
    """Makes SIGTERM an exit code, and Ctrl-C sure; returns what was before.

    Data in the making is lost, and made anew by the same command; training has
    a better way, which saves.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals are the main thread's
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _leave)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave)
    return before


def _leave(number, frame):
    """Raises what ends the program, once somebody can take it."""
    collecting = {getattr(callback, '__code__', None) for callback in gc.callbacks}
    while frame:
        # Python only prints what is raised where garbage is collected; JAX, for
        # one, has a callback there.
        if frame.f_code in collecting or frame.f_code.co_name == '__del__':
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(INTERRUPTED)


# ---- stages -------------------------------------------------------------------


def _data(words):
    from gptjax.data import ledger

    config, workdir = _open(words)
    if FLAGS.step is None:
        _make(config, workdir, [_documents])
        return
    for line in ledger.describe_batch(config, workdir, FLAGS.step):
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
    copy = Path(FLAGS.json).expanduser().absolute() if FLAGS.json else None
    if copy is not None and copy.is_dir():
        raise UserError(f'--json={copy} is a folder: name a file')
    if FLAGS.compare is None:
        from gptjax.eval import evaluate, quantized

        config, workdir = _open(words)
        if (FLAGS.weights, FLAGS.cache) != ('whole', 'whole'):
            asked = dict(weights=FLAGS.weights, cache=FLAGS.cache)
            change = quantized.measure_change(config, workdir, FLAGS.step, **asked)
            print(quantized.told(change, **asked))
            if copy:
                files.write_json(copy, dict(asked, **change))
            return
        changes = dict(
            max_tokens=FLAGS.max_tokens,
            temperature=FLAGS.temperature,
            top_k=FLAGS.top_k,
            top_p=FLAGS.top_p,
            seed=FLAGS.seed if FLAGS['seed'].present else None,
        )
        config.eval.update({k: v for k, v in changes.items() if v is not None})
        wanted = 'perplexity' if FLAGS.tasks is None else FLAGS.tasks
        evaluate.evaluate(config, workdir, wanted, copy, FLAGS.step)
        return
    from gptjax.eval import compare

    if len(words) != 1:
        raise UserError('--compare: name two run directories or results: --compare A B')
    compare.compare(FLAGS.compare, words[0], copy)


def _sample(words):
    from gptjax.eval import samples

    config, workdir = _open(words)
    changes = dict(
        max_tokens=FLAGS.max_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        min_p=FLAGS.min_p,
    )
    config.sample.update({k: v for k, v in changes.items() if v is not None})
    samples.sample(config, workdir, FLAGS.prompt, FLAGS.seed)


def _serve(words):
    from gptjax.serve import serve

    config, workdir = _open(words)
    options = serve.Options(
        host=FLAGS.host,
        port=FLAGS.port,
        step=FLAGS.step,
        beside=FLAGS.beside,
        api_key_file=FLAGS.api_key_file,
        allowed_hosts=FLAGS.allowed_hosts,
        slots=FLAGS.slots,
        queue=FLAGS.queue,
        time_limit=FLAGS.time_limit,
        **_engine_options(),
    )
    serve.serve(config, workdir, options)


def _chat(words):
    from gptjax.serve import terminal

    config, workdir = _open(words)
    terminal.chat(config, workdir, **_engine_options())


def _engine_options():
    """How `serve` and `chat` keep and speed up a model; see `load_engine`."""
    draft = FLAGS.draft and Path(FLAGS.draft).expanduser().absolute()
    return dict(
        weights=FLAGS.weights,
        cache=FLAGS.cache,
        draft=draft or None,
        guesses=FLAGS.guesses,
    )


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

        command.no_more(words[1:])
        if FLAGS.config is None:
            raise UserError('--config is missing: give one, as configs/bench.py')
        train.run(FLAGS.config, FLAGS.against, FLAGS.against_python)
    elif words[:1] == ['decode']:
        from gptjax.bench import decode

        config, workdir = FLAGS.config, None
        if FLAGS.workdir:
            config, workdir = _open(words[1:])
        command.no_more(words[1:])
        if config is None:
            raise UserError('--config is missing: give one, as configs/bench.py:llama')
        decode.run(
            config,
            workdir,
            FLAGS.step,
            against=FLAGS.against,
            python=FLAGS.against_python,
            slots=FLAGS.slots if FLAGS['slots'].present else None,
        )
    else:
        known = '`bench decode`, `bench data` or `bench train`'
        raise UserError(f'bench {" ".join(words)}: use {known}')


def _open(words):
    """(config, run directory) of a stage, checked to belong together."""
    command.no_more(words)
    if not FLAGS.workdir:
        raise UserError('--workdir is missing: name the run directory, as runs/tiny')
    workdir = Path(FLAGS.workdir).expanduser().absolute()
    if FLAGS.config is None:
        config = rundir.read_config(workdir)
    else:
        config = FLAGS.config.copy_and_resolve_references()
        rundir.check_run(config, workdir)
    if FLAGS.multihost:
        from gptjax.parallel import multihost

        multihost.initialize()
    return config, workdir


def _make(config, workdir, stages):
    """Everything before training; each part at once where it is done already."""

    def make():
        for stage in stages:
            began = time.monotonic()
            told, there = stage(config, workdir)
            seconds = time.monotonic() - began
            print(f'{told} ({"found" if there else f"made in {seconds:,.0f} s"})')
        rundir.write_config(config, workdir)

    if not FLAGS.multihost:
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
