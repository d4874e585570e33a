"""`bench decode`: latency and tokens per second of the engine, 1, 8, 64 at once.

Prompts and replies are ragged, drawing is greedy, and no reply ends before its
length, so that every contestant draws the same number of tokens. With `--against`
another library takes turns in the same run, on the same weights: `torch` is Hugging
Face's `generate` (`gptjax.bench.torch_generate`), `llama.cpp` a float32 GGUF file
(`gptjax.bench.llama_cpp_generate`). They must first give the same logits. With
`--draft` so does the engine itself with a smaller model that guesses ahead.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gptjax.bench import hf_weights
from gptjax.bench.contestant import check_backend, contestant
from gptjax.bench.timing import interleave, speedup, summarize
from gptjax.bench.workload import Workload, make_workload
from gptjax.core import console
from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt, parameter_count
from gptjax.models.settings import resolve
from gptjax.tokenizer.tokenizer import StreamDecoder

OURS = 'gptjax'
REQUESTS = {1: 6, 8: 6, 64: 3}  # requests at once -> rounds, at least
DOCUMENTS = 64  # held out, that prompts are pieces of
CHECKED = 64  # tokens of the text whose logits are compared
TOLERANCE = 2e-5  # of logits, as a share of the largest if that is above 1

# What `--against` takes: the module, and each contestant with its own arguments.
OTHERS = {
    'torch': (
        'gptjax.bench.torch_generate',
        {'torch eager': ['--mode=eager'], 'torch compile': ['--mode=compile']},
    ),
    'llama.cpp': ('gptjax.bench.llama_cpp_generate', {'llama.cpp': []}),
}


@dataclass
class Seen:
    """What the engine's listeners saw.

    first: seconds from the submission to the first token, of each request.
    between: seconds from a token to the next, of all requests.
    tokens: of each reply, the last time.
    steps: of replies, the last time: a step of the engine counts for each reply that
        it gave tokens to.
    """

    first: list[float]
    between: list[float]
    tokens: list[list[int]]
    steps: int = 0


class Endless:
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
    """Measures replies, with other contestants taking turns if asked for.

    Args:
        config: an experiment; without a run its weights are random, and so are the
            prompts.
        workdir: a run, whose weights are taken; prompts are pieces of its held-out
            text.
        step: of its checkpoint; None: the best.
        against: 'torch', 'llama.cpp', or None for ours alone.
        python: the interpreter that has the other library; by default this one.
        requests: so many requests at once -> rounds of measuring; there are as many
            as contestants at least, so that each comes first once.
        slots: requests that run at once; None: all.
        draft: the run of a smaller model that guesses ahead in a contestant of ours.
        guesses: tokens that it guesses in a step.

    Returns:
        (contestant, requests) -> its summary, `steps` its rounds: of ours also
        `first` and `between` (seconds at the median and the 95th percentile), of
        all but the first `speedup` (that one's over it), and with a draft `a_step`,
        tokens of a reply drawn in a step.

    Raises:
        UserError: what to compare with is unknown, not installed, has no such model,
            or gives other logits; a draft of no run, or that cannot guess for it; no
            documents of the run are held out.
    """
    if against not in (None, *OTHERS):
        raise UserError(f'--against={against}: use {" or ".join(OTHERS)}')
    if draft and not workdir:
        raise UserError(
            '--draft guesses for a trained model: name its run by --workdir, instead '
            'of --config'
        )
    if against:
        check_backend(against)
    settings, params, text = _model(config, workdir, step)
    if against:
        hf_weights.check(settings, against)
    ours = {OURS: {}}
    if draft:
        guessing = _draft(config, workdir, draft)
        options = dict(draft=(guessing.settings, guessing.params), guesses=guesses)
        ours['with the draft'] = options
    results = {}
    with ExitStack() as stack:
        others = {}
        if against:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            others = _others(stack, folder, settings, params, against, python)
        for n, rounds in requests.items():
            work = make_workload(n, settings.context, settings.vocab_size, slots, text)
            results |= _measure(settings, params, work, ours, others, rounds)
    _report(settings, results)
    return results


def _measure(settings, params, workload, ours, others, rounds):
    """(contestant, requests) -> its summary, of one workload."""
    n = len(workload.prompts)
    print(f'{OURS}, {_named(n)}: compiling', flush=True)
    turns, seen = {}, {}
    for name, options in ours.items():
        turns[name], seen[name] = engine_contestant(
            settings, params, workload, **options
        )
    our_tokens = seen[OURS].tokens
    for name in list(ours)[1:]:
        _tell_agreement(name, workload, our_tokens, seen[name].tokens)
    for name, ask in others.items():
        turns[name] = _other_contestant(name, ask, workload, our_tokens)
    seconds = interleave(turns, max(rounds, len(turns)), steps=1)
    tokens = sum(workload.lengths)
    results = {
        name: summarize([s for turn in turns for s in turn], tokens)
        for name, turns in seconds.items()
    }
    for name, its in seen.items():
        results[name]['first'] = _percentiles(its.first)
        results[name]['between'] = _percentiles(its.between)
    for name in list(ours)[1:]:
        results[name]['a_step'] = tokens / seen[name].steps
    for name in list(turns)[1:]:
        results[name]['speedup'] = speedup(seconds[OURS], seconds[name])
    return {(name, n): result for name, result in results.items()}


def _model(config, workdir, step):
    """(settings, parameters, held-out tokens): a run's; or random ones, and none."""
    if workdir is None:
        settings = resolve(config.model, config.tokenizer.vocab_size)
        init = jax.jit(lambda key: gpt.init_params(settings, key))
        return settings, init(jax.random.key(0)), []
    from gptjax.eval.held_out_documents import held_out_texts
    from gptjax.train.load_model import inference_mesh, load

    with console.progress_bar('reading the model', 0):
        trained = load(config, workdir, inference_mesh(config), step)
    texts = '\n\n'.join(held_out_texts(config, workdir, DOCUMENTS))
    return trained.settings, trained.params, trained.tokenizer.encode(texts)


def _draft(config, workdir, draft):
    """The model of a run that may guess for that of another."""
    from gptjax.tokenizer.tokenizer import Tokenizer
    from gptjax.train.load_model import inference_mesh, load_draft

    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
    return load_draft(draft, inference_mesh(config), tokenizer)


# ---- the contestants ----------------------------------------------------------


def engine_contestant(
    settings, params, workload: Workload, **options
) -> tuple[Callable[[int], list[float]], Seen]:
    """`go(steps)`, which answers the workload so often, warm; and what is seen.

    `options` are further ones of the engine.
    """
    engine = Engine(
        settings,
        params,
        Endless(),
        slots=workload.batch,
        queue=len(workload.prompts),
        prefix_bytes=0,  # each prompt is read anew, as the others read it
        **options,
    )
    engine.warm_up()
    seen = Seen([], [], [])

    def once() -> float:
        tokens = [[] for _ in workload.prompts]
        times = [[] for _ in workload.prompts]
        rounds, told = 0, set()  # and (reply, round) where there were tokens

        def listener(request):
            def listen(update):
                if update.tokens:
                    told.add((request, rounds))
                times[request] += [time.perf_counter()] * len(update.tokens)
                tokens[request] += [token.id for token in update.tokens]

            return listen

        began = time.perf_counter()
        for request, prompt in enumerate(workload.prompts):
            how = SamplingParameters(
                max_tokens=workload.lengths[request], temperature=0.0
            )
            engine.submit(prompt, how, listener(request))
        while engine.step():
            rounds += 1
        seconds = time.perf_counter() - began
        seen.first.extend(row[0] - began for row in times)
        seen.between.extend(gap for row in times for gap in np.diff(row))
        seen.tokens[:] = tokens
        seen.steps = len(told)
        return seconds

    def go(steps: int) -> list[float]:
        return [once() for _ in range(steps)]

    once()
    seen.first.clear()
    seen.between.clear()
    return go, seen


def _others(stack, folder, settings, params, against, python):
    """name -> `ask` of each contestant, started and found to give our logits."""
    weights = folder / 'weights.npz'
    hf_weights.write(weights, settings, params)
    module, contestants = OTHERS[against]
    started = {}
    for name, arguments in contestants.items():
        print(f'{name}: starting', flush=True)
        arguments = [f'--weights={weights}', *arguments]
        described, started[name] = stack.enter_context(
            contestant(against, module, arguments, python or sys.executable)
        )
        difference = compare_logits(started[name], folder, settings, params)
        print(
            f'{name}: {described["name"]}, {described["threads"]} threads; '
            f'logits differ from ours by {difference:.1e} at most',
            flush=True,
        )
    return started


def compare_logits(ask: Callable, folder: Path, settings, params) -> float:
    """The largest difference of the logits of a random text.

    Raises:
        UserError: it is more than rounding explains.
    """
    T = min(CHECKED, settings.context)
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


def _other_contestant(name, ask, workload, our_tokens):
    """`go(steps)` of another process, warm, with a word on whether its tokens agree."""
    order = dict(do='go', **workload._asdict())
    _tell_agreement(name, workload, our_tokens, ask(order)['tokens'])
    return lambda steps: [ask(order)['seconds'] for _ in range(steps)]


def _tell_agreement(name, workload, our_tokens, theirs):
    agreed = sum(
        next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        for pairs in (
            list(zip(a, b, strict=True))
            for a, b in zip(our_tokens, theirs, strict=True)
        )
    )
    print(
        f'{name}, {_named(len(theirs))}: {agreed:,} of {sum(workload.lengths):,} '
        'tokens agree with ours before the first that differs',
        flush=True,
    )


# ---- what is printed ----------------------------------------------------------


def _report(settings, results):
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
        row = f'{name + ", " + _named(n):28}{result["steps"]:7}'
        row += f'{result["tokens_per_second"]:9,.0f}'
        for seen in ('first', 'between'):
            for share in ('p50', 'p95'):
                if seen in result:
                    row += f'{result[seen][share] * 1e3:11,.2f}'
        print(row)
    for (name, n), result in results.items():
        if 'speedup' in result:
            ratio = result['speedup']
            print(
                f'{_named(n)}: {OURS} is {ratio["ratio"]:.2f} times as fast as {name} '
                f'({ratio["low"]:.2f} to {ratio["high"]:.2f} by round, median of '
                f'{result["steps"]})'
            )
        if 'a_step' in result:
            print(f'{_named(n)}, {name}: {result["a_step"]:.2f} tokens a step')


def _named(requests):
    return f'{requests} request' if requests == 1 else f'{requests} requests'


def _percentiles(seconds):
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return {'p50': p50, 'p95': p95}
