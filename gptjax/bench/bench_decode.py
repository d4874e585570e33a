"""`bench decode`: latency and tokens per second of the engine, 1, 8, 64 at once.

Prompts and replies are ragged, decoding is greedy, and no reply ends before its
length, so that every implementation draws the same number of tokens. With `--against`
another library takes turns in the same run, on the same weights: `torch` is Hugging
Face's `generate` (`gptjax.bench.torch_generate`), `llama.cpp` a float32 GGUF file
(`gptjax.bench.llama_cpp_generate`). They must first give the same logits. With
`--draft` so does the engine itself with speculative decoding by a smaller model.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    time_in_turns,
)
from gptjax.core import console
from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt, parameter_count
from gptjax.models.settings import resolve
from gptjax.tokenizer.tokenizer import StreamDecoder

OURS = 'gptjax'
REQUESTS = {1: 6, 8: 6, 64: 3}  # requests at once -> rounds, at least
NUM_DOCUMENTS = 64  # held out, from which prompts are cut
NUM_LOGITS_TOKENS = 64  # of the text whose logits are compared
TOLERANCE = 2e-5  # of logits, as a share of the largest if that is above 1

# What `--against` takes: the module, and its implementations with their arguments.
LIBRARIES = {
    'torch': (
        'gptjax.bench.torch_generate',
        {'torch eager': ['--mode=eager'], 'torch compile': ['--mode=compile']},
    ),
    'llama.cpp': ('gptjax.bench.llama_cpp_generate', {'llama.cpp': []}),
}


class Workload(NamedTuple):
    """Requests that come all at once."""

    prompts: list[list[int]]  # token ids
    lengths: list[int]  # tokens of each reply
    batch: int  # requests that may run at once


def make_workload(
    num_requests: int,
    context: int,
    vocab_size: int,
    slots: int | None = None,
    text: Sequence[int] = (),
) -> Workload:
    """Requests whose lengths are spread evenly over their ranges, in random order.

    Prompts are from 1/32 to 1/4 of the context, replies from 1/16 to 1/2: of 512,
    from 16 to 128 and from 32 to 256 tokens. One request has the middle of both.
    Prompts are cut from the token ids `text`; without it they are random tokens.
    `slots` limits how many requests run at once.
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


@dataclass
class EngineTimes:
    """What the engine's listeners have measured; times are in seconds."""

    first_token: list[float]  # from the submission to the first token
    between_tokens: list[float]
    tokens: list[list[int]]  # of each reply in the last round
    num_reply_steps: int = 0  # (reply, engine step) pairs with tokens in that round


class EndlessTokenizer:
    """A tokenizer whose EOS is never drawn and whose tokens are all one letter."""

    eos_id = -1

    def bytes_of(self, token: int) -> bytes:
        return b'a'

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)


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
    """Measures decoding, in turns with other implementations if asked for.

    Args:
        workdir: a run, whose weights are measured on prompts of its held-out text;
            without one, weights and prompts are random.
        step: of the run's checkpoint; None: the best.
        against: 'torch', 'llama.cpp', or None for ours alone.
        python: the interpreter that has the other library; by default this one.
        requests: number of requests at once -> rounds of measuring. There are at least
            as many rounds as implementations, so that each comes first once.
        slots: requests that run at once; None: all.
        draft: the run of a smaller model, which guesses `guesses` tokens a step in one
            more implementation.

    Returns:
        (implementation, requests) -> its summary, `steps` its rounds: of ours also
        `first` and `between` (seconds at the median and the 95th percentile), of all
        but the first `speedup` (the first's over it), and with a draft `a_step`, tokens
        of a reply drawn in a step.
    """
    if against not in (None, *LIBRARIES):
        raise UserError(f'--against={against}: use {" or ".join(LIBRARIES)}')
    if draft and not workdir:
        raise UserError(
            '--draft guesses for a trained model: name its run by --workdir, instead '
            'of --config'
        )
    if against:
        check_backend(against)
    settings, params, text = _load_model(config, workdir, step)
    if against:
        hf_weights.check(settings, against)
    engine_options = {OURS: {}}
    if draft:
        from gptjax.tokenizer.tokenizer import Tokenizer
        from gptjax.train.load_model import inference_mesh, load_draft

        tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
        draft_model = load_draft(draft, inference_mesh(config), tokenizer)
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
            workload = make_workload(
                n, settings.context, settings.vocab_size, slots, text
            )
            results |= _measure(
                settings, params, workload, engine_options, libraries, rounds
            )
    _print_report(settings, results)
    return results


def _measure(settings, params, workload, engine_options, libraries, rounds):
    """(implementation, requests) -> its summary, of one workload."""
    n = len(workload.prompts)
    print(f'{OURS}, {_format_requests(n)}: compiling', flush=True)
    implementations, times = {}, {}
    for name, options in engine_options.items():
        implementations[name], times[name] = make_engine_runner(
            settings, params, workload, **options
        )
    our_tokens = times[OURS].tokens
    for name in list(times)[1:]:
        _print_agreement(name, workload, our_tokens, times[name].tokens)
    for name, ask in libraries.items():
        order = dict(do='generate', **workload._asdict())
        _print_agreement(name, workload, our_tokens, ask(order)['tokens'])
        implementations[name] = lambda steps, ask=ask, order=order: [
            ask(order)['seconds'] for _ in range(steps)
        ]
    rounds = max(rounds, len(implementations))
    seconds = time_in_turns(implementations, rounds, steps=1)
    num_tokens = sum(workload.lengths)
    results = summarize_all(seconds, num_tokens)
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
    """(settings, parameters, held-out tokens) of a run; or random ones, and []."""
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


def make_engine_runner(
    settings, params, workload: Workload, **options
) -> tuple[Callable[[int], list[float]], EngineTimes]:
    """(`run_steps(steps)`, which answers the workload so often; what it measures).

    The engine is compiled and has answered once. `options` are further ones of it.
    """
    engine = Engine(
        settings,
        params,
        EndlessTokenizer(),
        slots=workload.batch,
        queue=len(workload.prompts),
        prefix_bytes=0,  # no prefix cache: the other libraries have none
        **options,
    )
    engine.warm_up()
    measured = EngineTimes([], [], [])

    def run_once() -> float:
        tokens = [[] for _ in workload.prompts]
        token_times = [[] for _ in workload.prompts]
        engine_step, reply_steps = 0, set()

        def listen(request, update):
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
            engine.submit(prompt, parameters, partial(listen, request))
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
    """name -> `ask` of each implementation, started and found to give our logits."""
    weights = folder / 'weights.npz'
    hf_weights.write(weights, settings, params)
    module, implementations = LIBRARIES[against]
    ask_of_name = {}
    for name, arguments in implementations.items():
        print(f'{name}: starting', flush=True)
        arguments = [f'--weights={weights}', *arguments]
        description, ask_of_name[name] = stack.enter_context(
            library_process(against, module, arguments, python or sys.executable)
        )
        difference = compare_logits(ask_of_name[name], folder, settings, params)
        print(
            f'{name}: {description["name"]}, {description["threads"]} threads; '
            f'logits differ from ours by {difference:.1e} at most',
            flush=True,
        )
    return ask_of_name


def compare_logits(ask: Callable, folder: Path, settings, params) -> float:
    """The largest difference of a random text's logits, refused beyond rounding."""
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
    ask(dict(do='logits', tokens=tokens_T.tolist(), path=str(path)))
    difference = float(np.abs(np.load(path) - np.asarray(our_TV)).max())
    largest = float(np.abs(our_TV).max())
    if difference > TOLERANCE * max(1.0, largest):
        raise UserError(
            f'--against: its logits differ from ours by {difference:.1e}, where the '
            f'largest is {largest:.1f}: the models are not the same'
        )
    return difference


# ---- what is printed ----------------------------------------------------------


def _print_agreement(name, workload, our_tokens, their_tokens):
    num_equal = 0
    for ours, theirs in zip(our_tokens, their_tokens, strict=True):
        for our_token, their_token in zip(ours, theirs, strict=True):
            if our_token != their_token:
                break
            num_equal += 1
    print(
        f'{name}, {_format_requests(len(their_tokens))}: {num_equal:,} of '
        f'{sum(workload.lengths):,} tokens agree with ours before the first that '
        'differs',
        flush=True,
    )


def _print_report(settings, results):
    context = settings.context
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
            for percentile in ('p50', 'p95'):
                if interval in result:
                    row += f'{result[interval][percentile] * 1e3:11,.2f}'
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
