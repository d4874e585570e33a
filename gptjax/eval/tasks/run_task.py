"""Asking a model: it writes replies, or chooses among them, and is scored.

A prompt that is longer than the model can read loses its beginning, BOS with it, as a
row of training that begins inside a document has none. How many did is in the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.core.hashing import hash_integer
from gptjax.eval import results
from gptjax.eval.tasks import choice, examples, reply_metrics
from gptjax.eval.tasks.examples import Item
from gptjax.eval.tasks.likelihood import score_pairs, truncated
from gptjax.infer.request import SamplingParameters

AT_ONCE = 64  # prompts that the engine is given at once: how often progress shows


class Subject(NamedTuple):
    """The model that is asked, and how.

    tokenizer: of the run.
    template: the chat template's name.
    context: tokens that it reads at once.
    scores: from a batch to (ln P of its targets, are they the likeliest).
    complete: from prompts and their parameters to replies, as the engine does it.
    settings: the config's section `eval`.
    """

    tokenizer: Any
    template: str
    context: int
    scores: Callable[[dict], tuple]
    complete: Callable[[list[list[int]], list[SamplingParameters]], list]
    settings: ConfigDict


def prompt_tokens(subject: Subject, prompt: str | Sequence[dict]) -> list[int]:
    """A text after BOS, or messages as the chat template has them."""
    from gptjax.data import chat_template

    if isinstance(prompt, str):
        return [subject.tokenizer.bos_id, *subject.tokenizer.encode(prompt)]
    return chat_template.prompt_of(list(prompt), subject.tokenizer, subject.template)


def bootstrap_of(settings: ConfigDict) -> results.Bootstrap:
    return results.Bootstrap(settings.resamples, settings.level, settings.seed)


# ---- replies


def generate(subject: Subject, asked: Sequence[Item], about: str) -> dict:
    """Lets the model answer every item; the result of a task of kind 'generation'.

    Baselines: the reference of another item as the answer to this one, and, of what
    needs no reference, the references themselves.
    """
    settings = subject.settings
    how = bootstrap_of(settings)
    parameters = SamplingParameters(
        max_tokens=min(settings.max_tokens, subject.context // 2),
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    room = subject.context - parameters.max_tokens
    prompts = [prompt_tokens(subject, item.prompt) for item in asked]
    answers = _answers(subject, asked, [p[-room:] for p in prompts], parameters)
    references = [item.references for item in asked]
    first = [its[0] for its in references]
    others = examples.other_references(asked, settings.seed)

    with console.progress_bar('scoring answers', 3, 'systems') as advance:
        columns = reply_metrics.measure(answers, references)
        figures = _generation_figures(answers, columns, how)
        advance()
        other_columns = reply_metrics.measure(others, references)
        with_other = results.figures_of(other_columns, reply_metrics.FIGURES, how)
        advance()
        own = _generation_figures(first, reply_metrics.measure(first, references), how)
        advance()
    variety = ('repetition', 'words', *reply_metrics.DISTINCT)
    compared = {n: f for n, f in with_other.items() if n not in variety}
    results.add_baseline(figures, "another item's reference", compared)
    results.add_baseline(figures, 'the references', {n: own[n] for n in variety})
    return results.result(
        'generation',
        about,
        figures,
        columns,
        [
            dict(_named(item), reply=answer, references=list(item.references))
            for item, answer in zip(asked, answers, strict=True)
        ],
        how,
        dict(
            seed=settings.seed,
            max_tokens=parameters.max_tokens,
            temperature=parameters.temperature,
            top_k=parameters.top_k,
            top_p=parameters.top_p,
            template=subject.template,
            prompt_tokens_at_most=room,
            prompts_cut_from_the_left=sum(len(p) > room for p in prompts),
        ),
        signatures=reply_metrics.signatures(references),
    )


def _answers(subject, asked, prompts, parameters) -> list[str]:
    """What the model says, stripped."""
    replies = replies_of(subject, asked, prompts, parameters)
    return [reply.text.strip() for reply in replies]


def replies_of(
    subject: Subject,
    asked: Sequence[Item],
    prompts: Sequence[list[int]],
    parameters: SamplingParameters,
) -> list:
    """The engine's reply to each prompt, drawn by the seed of its item.

    It ends where the item says, or where the chat template has it.
    """
    from gptjax.data import chat_template

    stops, stop_tokens = chat_template.stops_of(subject.template, subject.tokenizer)
    wanted = [
        replace(
            parameters,
            seed=hash_integer(subject.settings.seed, 'reply', item.id) % 2**32,
            stop=tuple(stops if item.stop is None else item.stop),
            stop_tokens=tuple(stop_tokens),
        )
        for item in asked
    ]
    replies = []
    with console.progress_bar('answering', len(asked), 'prompts') as advance:
        for first in range(0, len(asked), AT_ONCE):
            its = slice(first, first + AT_ONCE)
            replies += subject.complete(prompts[its], wanted[its])
            advance(len(replies[its]))
    return replies


def _generation_figures(answers, columns, how):
    figures = results.figures_of(columns, reply_metrics.FIGURES, how)
    for name, n in reply_metrics.DISTINCT.items():
        samples = reply_metrics.resampled_distinct(answers, n, how.resamples, how.seed)
        figures[name] = results.figure_of(
            reply_metrics.distinct(answers, n), samples, how.level
        )
    return figures


# ---- choices


def choose(subject: Subject, asked: Sequence[Item], about: str) -> dict:
    """Lets the model choose by likelihood; the result of a task of kind 'choice'.

    Baselines: chance, and the same rule without the prompt.
    """
    settings, tokenizer = subject.settings, subject.tokenizer
    how = bootstrap_of(settings)
    pairs, blind = [], []
    for item in asked:
        for before, after in _pairs(subject, item):
            pairs.append((before, after))
            blind.append(([tokenizer.bos_id], after))
    scored = score_pairs(
        subject.scores,
        [*pairs, *blind],
        subject.context,
        settings.batch_size,
        tokenizer.pad_id,
    )
    logprobs = [score.logprob for score in scored]
    measured, first = [], 0
    for item in asked:
        its = range(first, first + len(item.choices))
        first = its.stop
        measured.append(
            choice.Choices(
                logprobs=[logprobs[place] for place in its],
                without_prompt=[logprobs[len(pairs) + place] for place in its],
                tokens=[len(pairs[place][1]) for place in its],
                num_bytes=[len(text.encode()) for text in item.choices],
                right=item.answer,
            )
        )
    columns = choice.measure(measured)
    figures = results.figures_of(columns, choice.FIGURES, how)
    chance = dict(value=float(columns['chance'].mean()))
    results.add_baseline(figures, 'chance', dict.fromkeys(choice.RULES, chance))
    results.add_baseline(
        figures, 'without the prompt', results.figures_of(columns, choice.BLIND, how)
    )
    return results.result(
        'choice',
        about,
        figures,
        columns,
        [
            dict(_named(item), answer=item.answer, logprobs=list(found.logprobs))
            for item, found in zip(asked, measured, strict=True)
        ],
        how,
        dict(
            seed=settings.seed,
            template=subject.template,
            prompt_tokens_at_most=subject.context,
            prompts_cut_from_the_left=truncated(pairs, subject.context),
        ),
    )


def _pairs(subject, item):
    """(tokens of the prompt, tokens of a choice) of every choice."""
    prompt, space = item.prompt, ''
    if isinstance(prompt, str):
        # A space at the prompt's end belongs to the word that follows.
        bare = prompt.rstrip(' ')
        prompt, space = bare, prompt[len(bare) :]
    before = prompt_tokens(subject, prompt)
    return [(before, subject.tokenizer.encode(space + text)) for text in item.choices]


def _named(item: Item) -> dict:
    return dict(
        id=item.id, prompt_sha256=item.prompt_hash(), item_sha256=item.content_hash()
    )
