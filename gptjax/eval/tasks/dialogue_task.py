"""The task `dialogue`: replies of conversations that the model was not trained on.

Of each conversation one reply that somebody gave is drawn, and asked is

    reply_bits         bits a byte of it, given what was said before; the end of the
                       turn is predicted as well, and costs bits but counts no byte
    reply_bits_open    the same without the end
    accuracy …         whether it is likelier than replies from other conversations,
                       ends included, by the rules of choice.py
    stops, stops_drawn how often the model's own reply ends by itself within
                       `eval.max_tokens`: the likeliest one, and one drawn at
                       temperature 1

Every model is asked in its own template. In 'text' the end of a turn is an empty line,
which may be one token with the last character: there `reply_bits` is the figure to
compare, as every template pays for its end in it. What a model does not have room for
loses its oldest turns.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from gptjax.data import chat_template
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks import choice, run_task
from gptjax.eval.tasks.examples import Item
from gptjax.eval.tasks.likelihood import score_pairs
from gptjax.eval.tasks.run_task import Subject
from gptjax.infer.request import SamplingParameters

TEMPERATURES = dict(stops=0.0, stops_drawn=1.0)


def per_byte(nats: str):
    """The figure of bits per byte from the sums of a column."""
    mean = bootstrap.mean_of(nats, 'bytes')
    return lambda sums: mean(sums) / math.log(2)


FIGURES = dict(
    reply_bits=per_byte('nats'),
    reply_bits_open=per_byte('nats_open'),
    **choice.FIGURES,
    **{name: bootstrap.mean_of(name) for name in TEMPERATURES},
    reply_tokens=bootstrap.mean_of('reply_tokens'),
)


def measure(subject: Subject, asked: Sequence[Item]) -> dict:
    """The result of a task of kind 'dialogue'.

    Baselines: chance, the same without the prompt, and the people's own replies.
    """
    how = run_task.bootstrap_of(subject.settings)
    columns, without = _likelihoods(subject, asked)
    replies = {name: _replies(subject, asked, t) for name, t in TEMPERATURES.items()}
    for name, its in replies.items():
        columns[name] = np.array([r.finish == 'stop' for r in its], np.float64)
    columns['reply_tokens'] = np.array(
        [len(reply.tokens) for reply in replies['stops']], np.float64
    )
    figures = _figures(columns, without, how, asked, subject)
    sources = np.array([item.id.split('/')[0] for item in asked])
    if len(set(sources)) > 1:
        for source in dict.fromkeys(sources):
            chosen = {n: column[sources == source] for n, column in columns.items()}
            its = results.figures_of(chosen, FIGURES, how)
            figures.update({f'{name}/{source}': its[name] for name in BY_SOURCE})
    return results.result(
        'dialogue',
        'replies of held-out conversations; intervals over conversations',
        figures,
        columns,
        [
            dict(
                id=item.id,
                source=str(source),
                prompt_sha256=item.prompt_hash(),
                item_sha256=item.content_hash(),
                reply=greedy.text.strip(),
                drawn=drawn.text.strip(),
            )
            for item, source, greedy, drawn in zip(
                asked, sources, *replies.values(), strict=True
            )
        ],
        how,
        dict(
            seed=subject.settings.seed,
            template=subject.template,
            max_tokens=_limit(subject),
            choices=subject.settings.choices,
            prompt_tokens_at_most=_room(subject),
        ),
    )


BY_SOURCE = ('reply_bits', 'accuracy', 'stops')


def beside(found: dict, label: str, other: dict) -> None:
    """Puts the figures of another model's result beside those of this one."""
    values = {
        name: dict(value=figure['value'], interval=figure['interval'])
        for name, figure in other['figures'].items()
    }
    results.add_baseline(found['figures'], label, values)


# ---- likelihood


def _likelihoods(subject, asked) -> tuple[dict, dict]:
    """Statistics of each item, and some of the same without the prompt."""
    tokenizer, template = subject.tokenizer, subject.template
    # What stands before a reply to nothing: BOS, and the assistant's opening.
    (nothing,) = chat_template.encode_turns([_EMPTY], tokenizer, template)
    blind = [tokenizer.bos_id, *nothing.opening]
    given, unknown, unended = [], [], []
    for item in asked:
        before = prompt_tokens(subject, item.prompt)
        for text in item.choices:
            after = _reply_tokens(subject, text)
            given.append((before, after))
            unknown.append((blind, after))
        reply = _reply_tokens(subject, item.references[0], unfinished=True)
        unended.append((before, reply))
    scored = score_pairs(
        subject.scores,
        [*given, *unknown, *unended],
        subject.context,
        subject.settings.batch_size,
        tokenizer.pad_id,
    )
    logprobs = iter([score.logprob for score in scored])
    lengths = [len(after) for _, after in given]
    with_prompt = [next(logprobs) for _ in given]
    without_prompt = [next(logprobs) for _ in unknown]
    measured, first = [], 0
    for item in asked:
        its = slice(first, first + len(item.choices))
        first = its.stop
        measured.append(
            choice.Choices(
                logprobs=with_prompt[its],
                without_prompt=without_prompt[its],
                tokens=lengths[its],
                num_bytes=[len(text.encode()) for text in item.choices],
                right=item.answer,
            )
        )
    column = partial(np.array, dtype=np.float64)
    columns = dict(
        choice.measure(measured),
        bytes=column([its.num_bytes[its.right] for its in measured]),
        nats=column([-its.logprobs[its.right] for its in measured]),
        nats_open=column([-next(logprobs) for _ in unended]),
    )
    blind_nats = column([-its.without_prompt[its.right] for its in measured])
    return columns, dict(columns, nats=blind_nats)


_EMPTY = dict(role='assistant', content='')


def prompt_tokens(subject: Subject, messages: Sequence[dict]) -> list[int]:
    """The prompt in the model's template, without its oldest turns if need be.

    What a system message says stays. Where the last turn alone is too long, its
    beginning goes, and BOS with it.
    """
    room = _room(subject)
    head = [m for m in messages[:1] if m['role'] == 'system']
    rest = list(messages[len(head) :])
    while True:
        tokens = chat_template.prompt_of(
            [*head, *rest], subject.tokenizer, subject.template
        )
        if len(tokens) <= room or len(rest) == 1:
            return tokens[-room:]
        rest = rest[1:]


def _room(subject) -> int:
    return subject.context - _limit(subject)


def _limit(subject) -> int:
    """Tokens that a reply may have."""
    return min(subject.settings.max_tokens, subject.context // 2)


def _reply_tokens(subject, text, unfinished=False) -> list[int]:
    message = dict(role='assistant', content=text)
    (turn,) = chat_template.encode_turns(
        [message], subject.tokenizer, subject.template, unfinished
    )
    return turn.said


# ---- replies


def _replies(subject, asked, temperature) -> list:
    """What the model says to every prompt, each drawn by its own seed."""
    parameters = SamplingParameters(max_tokens=_limit(subject), temperature=temperature)
    prompts = [prompt_tokens(subject, item.prompt) for item in asked]
    return run_task.replies_of(subject, asked, prompts, parameters)


# ---- figures


def _figures(columns, without, how, asked, subject) -> dict:
    figures = results.figures_of(columns, FIGURES, how)
    blind = dict(reply_bits=FIGURES['reply_bits'])
    results.add_baseline(
        figures,
        'without the prompt',
        {
            **results.figures_of(without, blind, how),
            **results.figures_of(columns, choice.BLIND, how),
        },
    )
    chance = dict(value=float(columns['chance'].mean()))
    results.add_baseline(figures, 'chance', dict.fromkeys(choice.RULES, chance))
    lengths = np.array([len(_reply_tokens(subject, i.references[0])) for i in asked])
    people = dict(
        stops=float((lengths <= _limit(subject)).mean()),
        reply_tokens=float(lengths.mean()),
    )
    results.add_baseline(
        figures, 'the people', {name: dict(value=v) for name, v in people.items()}
    )
    return figures
