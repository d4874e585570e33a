"""`bench decode`: latency and tokens per second of 1, 8 and 64 requests at once.

Prompts and replies have different lengths, decoding is greedy, and no reply ends before
its length, so every implementation draws the same number of tokens.

`--against` times another library alternately, on the same weights: `torch` is Hugging
Face's `generate` (`gptjax.bench.torch_generate`), `llama.cpp` reads a float32 GGUF file
(`gptjax.bench.llama_cpp_generate`). Both must give the same logits first. `--draft`
adds the engine with speculative decoding by a smaller model.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gptjax.bench import hf_weights
from gptjax.bench.comparison import (
    check_backend,
    library_process,
    summarize_all,
    time_alternately,
)
from gptjax.core import console
from gptjax.core.config import default_context
from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt, parameter_count
from gptjax.models.settings import resolve
from gptjax.tokenizer.tokenizer import StreamDecoder

OURS = 'gptjax'
REQUESTS = {1: 6, 8: 6, 64: 3}  # requests at once -> minimum number of rounds
NUM_DOCUMENTS = 64  # of the validation set, from which prompts are cut
NUM_LOGITS_TOKENS = 64  # of the text whose logits are compared
TOLERANCE = 2e-5  # of logits, relative to the largest if that is above 1

# The values of `--against`: the module, and the arguments of each implementation.
LIBRARIES = {
    'torch': (
        'gptjax.bench.torch_generate',
        {'torch eager': ['--mode=eager'], 'torch compile': ['--mode=compile']},
    ),
    'llama.cpp': ('gptjax.bench.llama_cpp_generate', {'llama.cpp': []}),
}


class Workload(NamedTuple):
    """Requests that arrive at the same time."""

    prompts: list[list[int]]  # token ids
    lengths: list[int]  # tokens of each reply
    batch: int  # largest number of requests that run at once


def make_workload(
    num_requests: int,
    context: int,
    vocab_size: int,
    slots: int | None = None,
    text: Sequence[int] = (),
) -> Workload:
    """Requests with lengths spread evenly over a range, in random order.

    Prompts have 1/32 to 1/4 of the context, replies 1/16 to 1/2: with 512 tokens, 16 to
    128 and 32 to 256 tokens. A single request has the middle of both ranges. Prompts
    are cut from the token ids `text`, or random tokens if it is empty.
    """
    rng = np.random.default_rng(num_requests)
    shares = (np.arange(num_requests) + 0.5) / num_requests
    spread = lambda low, high: rng.permutation(low + shares * (high - low)).astype(int)
    prompts = [
        rng.integers(0, vocab_size, max(1, length)).tolist()
        for length in spread(context / 32, context / 4)
    ]
    lengths = [max(1, int(n)) for n in spread(context / 16, context / 2)]
    if text:
        starts = rng.integers(max(1, len(text) - context // 4), size=num_requests)
        prompts = [
            list(text[start : start + len(prompt)])
            for start, prompt in zip(starts, prompts, strict=True)
        ]
    return Workload(prompts, lengths, min(num_requests, slots or num_requests))


def run(
    config: ConfigDict,
    workdir: Path | None = None,
    step: int | None = None,
    against: str | None = None,
    python: str | None = None,
    requests: dict[int, int] = REQUESTS,
    slots: int | None = None,
    draft: Path | None = None,
    guesses: int = 4,
) -> dict:
    """Times the engine alternately with other implementations.

    Args:
        workdir: a run, whose weights and validation documents are used. Without one,
            weights and prompts are random.
        step: of the run's checkpoint; None: the best.
        against: 'torch', 'llama.cpp', or None for the engine alone.
        python: the interpreter that has the other library; None: this one.
        requests: number of requests at once -> number of rounds, which is raised to the
            number of implementations, so that each comes first once.
        slots: requests that run at once; None: all.
        draft: the run of a smaller model, which proposes `guesses` tokens in a step of
            one more implementation.

    Returns:
        (implementation, requests) -> `summarize_all`, where `steps` is the number of
        rounds. The engine also has `first` and `between`, {'p50', 'p95'} of seconds to
        the first token and between tokens; with a draft, `a_step`, the tokens of a
        reply that one step draws.
    """
    if against not in (None, *LIBRARIES):
        raise UserError(f'--against={against}: use {" or ".join(LIBRARIES)}')
    if draft and not workdir:
        raise UserError(
            f'--draft={draft} needs a trained model: use --workdir instead of --config'
        )
    if against:
        check_backend(against)
    settings, params, text = _load_model(config, workdir, step)
    if against:
        hf_weights.check(settings, against)
    context = default_context(settings.context)
    engine_options = {OURS: {}}
    if draft:
        from gptjax.tokenizer.load_tokenizer import load_tokenizer
        from gptjax.train.load_model import inference_mesh, load_draft

        tokenizer = load_tokenizer(workdir / 'tokenizer')
        draft_model = load_draft(draft, inference_mesh(config), tokenizer)
        if draft_model.settings.position == 'learned':  # it has no more positions
            context = min(context, draft_model.settings.context)
        engine_options['with the draft'] = dict(
            draft=(draft_model.settings, draft_model.params), guesses=guesses
        )
    results = {}
    with ExitStack() as stack:
        libraries = {}
        if against:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            libraries = _start_libraries(
                stack, folder, settings, params, against, python
            )
        for n, rounds in requests.items():
            workload = make_workload(n, context, settings.vocab_size, slots, text)
            results |= _measure(
                settings, params, context, workload, engine_options, libraries, rounds
            )
    _print_report(settings, context, results)
    return results


def _measure(settings, params, context, workload, engine_options, libraries, rounds):
    """(implementation, requests) -> its summary, for one workload."""
    n = len(workload.prompts)
    print(f'{OURS}, {_format_requests(n)}: compiling', flush=True)
    implementations, times, tokens = {}, {}, {}
    for name, options in engine_options.items():
        implementations[name], times[name] = make_engine_runner(
            settings, params, workload, context=context, **options
        )
        tokens[name] = times[name].tokens
    for name, call in libraries.items():
        command = dict(do='generate', **workload._asdict())
        tokens[name] = call(command)['tokens']
        implementations[name] = lambda steps, call=call, command=command: [
            call(command)['seconds'] for _ in range(steps)
        ]
    num_tokens = sum(workload.lengths)
    for name in list(tokens)[1:]:
        num_equal = sum(
            int(np.cumprod(np.equal(ours, theirs)).sum())
            for ours, theirs in zip(tokens[OURS], tokens[name], strict=True)
        )
        print(
            f'{name}, {_format_requests(n)}: {num_equal:,} of {num_tokens:,} tokens '
            'agree with ours before the first that differs',
            flush=True,
        )
    rounds = max(rounds, len(implementations))
    results = summarize_all(
        time_alternately(implementations, rounds, steps=1), num_tokens
    )
    for name, engine_times in times.items():
        for key, values in (
            ('first', engine_times.first_token),
            ('between', engine_times.between_tokens),
        ):
            p50, p95 = np.percentile(values, [50, 95]).tolist()
            results[name][key] = {'p50': p50, 'p95': p95}
        if name != OURS:
            results[name]['a_step'] = num_tokens / engine_times.num_reply_steps
    return {(name, n): result for name, result in results.items()}


def _load_model(config, workdir, step):
    """(settings, parameters, validation tokens) of a run, or random ones and []."""
    if workdir is None:
        settings = resolve(config.model, config.tokenizer.vocab_size)
        init = jax.jit(lambda key: gpt.init_params(settings, key))
        return settings, init(jax.random.key(0)), []
    from gptjax.eval.held_out_documents import read_held_out_texts
    from gptjax.train.load_model import inference_mesh, load_model

    with console.progress_bar('reading the model', 0):
        trained = load_model(config, workdir, inference_mesh(config), step)
    texts = '\n\n'.join(read_held_out_texts(config, workdir, NUM_DOCUMENTS))
    return trained.settings, trained.params, trained.tokenizer.encode(texts)


# ---- implementations ----------------------------------------------------------


@dataclass
class EngineTimes:
    """Times of the engine's replies, in seconds."""

    first_token: list[float] = field(default_factory=list)  # since the submission
    between_tokens: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)  # of the last round's replies
    num_reply_steps: int = 0  # (reply, step) pairs with tokens in the last round


class EndlessTokenizer:
    """A tokenizer whose EOS is never drawn; every token is the letter a."""

    eos_ids = ()

    def bytes_of(self, token: int) -> bytes:
        return b'a'

    def stream(self, special_tokens: bool) -> StreamDecoder:
        return StreamDecoder(self)


def make_engine_runner(
    settings, params, workload: Workload, **options
) -> tuple[Callable[[int], list[float]], EngineTimes]:
    """(`run_steps(steps)`, which answers the workload `steps` times; its measurements).

    The engine, with further `options`, is compiled and has answered once.
    """
    engine = Engine(
        settings,
        params,
        EndlessTokenizer(),
        slots=workload.batch,
        queue=len(workload.prompts),
        prefix_bytes=0,  # the other libraries have no prefix cache
        **options,
    )
    engine.warm_up()
    measured = EngineTimes()

    def run_once() -> float:
        tokens = [[] for _ in workload.prompts]
        token_times = [[] for _ in workload.prompts]
        engine_step, reply_steps = 0, set()

        def on_update(request, update):
            if update.tokens:
                reply_steps.add((request, engine_step))
            now = time.perf_counter()
            token_times[request] += [now] * len(update.tokens)
            tokens[request] += [token.id for token in update.tokens]

        start = time.perf_counter()
        for request, prompt in enumerate(workload.prompts):
            parameters = SamplingParameters(
                max_tokens=workload.lengths[request], temperature=0.0
            )
            engine.submit(prompt, parameters, partial(on_update, request))
        while engine.step():
            engine_step += 1
        seconds = time.perf_counter() - start
        measured.first_token.extend(times[0] - start for times in token_times)
        gaps = (gap for times in token_times for gap in np.diff(times))
        measured.between_tokens.extend(gaps)
        measured.tokens[:] = tokens
        measured.num_reply_steps = len(reply_steps)
        return seconds

    run_once()
    measured.first_token.clear()
    measured.between_tokens.clear()
    return lambda steps: [run_once() for _ in range(steps)], measured


def _start_libraries(stack, folder, settings, params, against, python):
    """name -> `call` of each implementation, after a comparison of the logits."""
    weights = folder / 'weights.npz'
    hf_weights.write(weights, settings, params)
    module, implementations = LIBRARIES[against]
    calls = {}
    for name, arguments in implementations.items():
        print(f'{name}: starting', flush=True)
        arguments = [f'--weights={weights}', *arguments]
        description, calls[name] = stack.enter_context(
            library_process(against, module, arguments, python or sys.executable)
        )
        difference = compare_logits(calls[name], folder, settings, params)
        print(
            f'{name}: {description["name"]}, {description["threads"]} threads; '
            f'logits differ from ours by {difference:.1e} at most',
            flush=True,
        )
    return calls


def compare_logits(call: Callable, folder: Path, settings, params) -> float:
    """The largest difference of logits of a random text; refused beyond rounding."""
    T = min(NUM_LOGITS_TOKENS, settings.context)
    tokens_T = np.random.default_rng(0).integers(0, settings.vocab_size, T)
    logits = jax.jit(lambda params, *batch: gpt.bind(settings, params)(*batch))
    our_TV = logits(
        params,
        jnp.asarray(tokens_T, jnp.int32)[None],
        jnp.ones((1, T), jnp.int32),
        jnp.arange(T, dtype=jnp.int32)[None],
    )[0]
    path = folder / 'logits.npy'
    call(dict(do='logits', tokens=tokens_T.tolist(), path=str(path)))
    difference = float(np.abs(np.load(path) - np.asarray(our_TV)).max())
    largest = float(np.abs(our_TV).max())
    if difference > TOLERANCE * max(1.0, largest):
        raise UserError(
            f'--against: its logits differ from ours by {difference:.1e}, where the '
            f'largest is {largest:.1f}: the models are not the same'
        )
    return difference


# ---- what is printed ----------------------------------------------------------


def _print_report(settings, context, results):
    print(
        f'\n{parameter_count.num_params(settings):,} parameters; prompts of '
        f'{context // 32} to {context // 4} tokens, replies of {context // 16} to '
        f'{context // 2}, greedy'
    )
    print(
        f'{"":28}{"rounds":>7}{"tokens/s":>9}'
        f'{"first token, ms":>22}{"between tokens, ms":>22}'
    )
    print(f'{"":44}{"p50":>11}{"p95":>11}{"p50":>11}{"p95":>11}')
    for (name, n), result in results.items():
        row = f'{name + ", " + _format_requests(n):28}{result["steps"]:7}'
        row += f'{result["tokens_per_second"]:9,.0f}'
        for interval in ('first', 'between'):
            for seconds in result.get(interval, {}).values():  # p50, p95
                row += f'{seconds * 1e3:11,.2f}'
        print(row)
    for (name, n), result in results.items():
        requests = _format_requests(n)
        if 'speedup' in result:
            speedup = result['speedup']
            print(
                f'{requests}: {OURS} is {speedup["ratio"]:.2f} times as fast as {name} '
                f'({speedup["low"]:.2f} to {speedup["high"]:.2f} by round, median of '
                f'{result["steps"]})'
            )
        if 'a_step' in result:
            print(f'{requests}, {name}: {result["a_step"]:.2f} tokens a step')


def _format_requests(requests):
    return f'{requests} request' if requests == 1 else f'{requests} requests'
