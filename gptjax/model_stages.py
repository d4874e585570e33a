"""The stages `eval`, `sample`, `serve`, `chat` and `bench` of the command line."""

from collections.abc import Sequence
from pathlib import Path

from gptjax import command_line
from gptjax.command_line import FLAGS
from gptjax.core import console, storage
from gptjax.core.config import check_fields, complete_new
from gptjax.core.console import UserError
from gptjax.open_run import open_run


def run_eval(words: Sequence[str]) -> None:
    copy = _json_file()
    if FLAGS.compare is not None:
        from gptjax.eval import compare

        if len(words) != 1:
            raise UserError(
                '--compare needs two run directories or result files: --compare A B'
            )
        compare.compare(FLAGS.compare, words[0], copy)
        return
    config, workdir = open_run(words)
    if (FLAGS.weights, FLAGS.cache) != ('whole', 'whole'):
        from gptjax.eval import quantization_cost

        kinds = dict(weights=FLAGS.weights, cache=FLAGS.cache)
        with console.progress_bar('measuring the cost of quantization', 0):
            change = quantization_cost.measure_change(
                config, workdir, FLAGS.step, **kinds
            )
        print(quantization_cost.format_change(change, **kinds))
        if copy:
            storage.write_json(copy, dict(kinds, **change))
        return
    from gptjax.eval import evaluate

    seed = FLAGS.seed if FLAGS['seed'].present else None
    _update_given(config, 'eval', seed=seed, **_sampling_flags())
    evaluate.evaluate(config, workdir, FLAGS.tasks, copy, FLAGS.step)


def _json_file() -> Path | None:
    """The path of --json; raises UserError if it cannot be written."""
    if not FLAGS.json:
        return None
    path = Path(FLAGS.json).expanduser().absolute()
    if path.is_dir():
        raise UserError(f'--json={path} is a folder: give a file name')
    try:
        storage.try_writing(path)
    except OSError as error:
        raise UserError(
            f'--json={path}: cannot write there ({error.strerror}): use another file'
        ) from error
    return path


def _sampling_flags() -> dict:
    names = ('max_tokens', 'temperature', 'top_k', 'top_p')
    return {name: FLAGS[name].value for name in names}


def _update_given(config, section, **changes) -> None:
    config[section].update({k: v for k, v in changes.items() if v is not None})
    check_fields(config)


def run_sample(words: Sequence[str]) -> None:
    from gptjax.eval import samples

    config, workdir = open_run(words)
    console.accept_any_text()
    _update_given(config, 'sample', min_p=FLAGS.min_p, **_sampling_flags())
    given = FLAGS.prompt, FLAGS.seed, FLAGS.step
    samples.sample(config, workdir, *given, _json_file(), FLAGS.context)


def run_serve(words: Sequence[str]) -> None:
    from gptjax.serve import serve

    config, workdir = open_run(words)
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


def run_chat(words: Sequence[str]) -> None:
    from gptjax.serve import terminal

    config, workdir = open_run(words)
    console.accept_any_text()
    terminal.chat(config, workdir, **_engine_options())


def _engine_options():
    """The options of `load_engine` that `serve` and `chat` share."""
    return dict(
        context=FLAGS.context,
        weights=FLAGS.weights,
        cache=FLAGS.cache,
        draft=_draft(),
        guesses=FLAGS.guesses,
    )


def _draft():
    return Path(FLAGS.draft).expanduser().absolute() if FLAGS.draft else None


def run_bench(words: Sequence[str]) -> None:
    command_line.refuse_words(words[1:])
    if words[:1] == ['data']:
        from gptjax.bench import bench_data

        config, workdir = open_run([])
        bench_data.run(config, workdir)
    elif words[:1] in (['train'], ['many']):
        from gptjax.bench import bench_many, bench_train

        if FLAGS.config is None:
            raise UserError('--config is missing: use e.g. configs/bench.py')
        config = complete_new(FLAGS.config)
        check_fields(config)
        if words == ['many']:
            bench_many.run(config)
        else:
            bench_train.run(config, FLAGS.against, FLAGS.against_python)
    elif words[:1] == ['decode']:
        from gptjax.bench import bench_decode

        if FLAGS.workdir:
            config, workdir = open_run([])
        elif FLAGS.config is None:
            raise UserError('--config is missing: use e.g. configs/bench.py:llama')
        else:
            config, workdir = complete_new(FLAGS.config), None
            check_fields(config)
        bench_decode.run(
            config,
            workdir,
            FLAGS.step,
            against=FLAGS.against,
            python=FLAGS.against_python,
            slots=FLAGS.slots if FLAGS['slots'].present else None,
            draft=_draft(),
            guesses=FLAGS.guesses,
        )
    elif words[:1] == ['masking']:
        from gptjax.bench import bench_masking

        bench_masking.run()
    else:
        names = 'decode', 'data', 'train', 'many', 'masking'
        known = 'one of ' + ', '.join(f'`bench {name}`' for name in names)
        raise UserError(f'bench {" ".join(words)}: use {known}')
