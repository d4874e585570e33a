"""Multiple choice by likelihood: which answer is the model most likely to write?

An answer with more tokens is less likely, whatever it says, so there are three rules:

    accuracy         the highest ln P(answer | prompt)
    accuracy_tokens  the highest ln P / tokens of the answer
    accuracy_bytes   the highest ln P / UTF-8 bytes of the answer, which does not
                     depend on the tokenizer (`acc_norm` of lm-evaluation-harness)

The baselines are chance, and the same rule on ln P(answer) without the prompt: the
difference to the second one is what the model gains from reading the question.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.eval import bootstrap, results
from gptjax.eval.tasks.examples import Example
from gptjax.eval.tasks.likelihood import count_truncated
from gptjax.eval.tasks.predictor import Predictor

RULES = ('accuracy', 'accuracy_tokens', 'accuracy_bytes')
FIGURES = {rule: bootstrap.mean_figure(rule) for rule in RULES}
FIGURES_WITHOUT_PROMPT = {
    rule: bootstrap.mean_figure(f'blind_{rule}') for rule in RULES
}

TokenPair = tuple[list[int], list[int]]  # tokens of a prompt, tokens of an answer


class ScoredChoices(NamedTuple):
    """The scored answers of one example."""

    logprobs: Sequence[float]  # ln P of each answer given the prompt
    without_prompt: Sequence[float]  # ln P of each answer given BOS alone
    num_tokens: Sequence[int]  # of each answer
    num_bytes: Sequence[int]
    right: int  # the index of the right answer


def evaluate_choices(
    predictor: Predictor, examples: Sequence[Example], about: str
) -> dict:
    """The task's result, of kind 'choice': the model chooses in every example."""
    pairs = [pair for example in examples for pair in _encode(predictor, example)]
    scored, _ = score_choices(predictor, examples, pairs, [predictor.tokenizer.bos_id])
    columns = choice_columns(scored)
    bootstrap_settings = predictor.bootstrap_settings
    figures = bootstrap.compute_figures(columns, FIGURES, bootstrap_settings)
    results.add_baseline(figures, 'chance', chance_figures(columns))
    without_prompt = bootstrap.compute_figures(
        columns, FIGURES_WITHOUT_PROMPT, bootstrap_settings
    )
    results.add_baseline(figures, 'without the prompt', without_prompt)
    return results.make_result(
        'choice',
        about,
        figures,
        columns,
        [
            dict(
                example.identity(),
                answer=example.answer,
                logprobs=list(choices.logprobs),
            )
            for example, choices in zip(examples, scored, strict=True)
        ],
        bootstrap_settings,
        dict(
            seed=predictor.settings.seed,
            template=predictor.template,
            prompt_tokens_at_most=predictor.context,
            prompts_cut_from_the_left=count_truncated(pairs, predictor.context),
        ),
    )


def _encode(predictor: Predictor, example: Example) -> list[TokenPair]:
    """(prompt, choice) for every choice: 'Sky: ' + 'blue' → 'Sky:' + ' blue'.

    Tokenizers join a space with the word that follows it.
    """
    prompt, space = example.prompt, ''
    if isinstance(prompt, str):
        prompt = example.prompt.rstrip(' ')
        space = example.prompt[len(prompt) :]
    prompt_tokens = predictor.encode_prompt(prompt)
    encode = predictor.tokenizer.encode
    return [(prompt_tokens, encode(space + choice)) for choice in example.choices]


def score_choices(
    predictor: Predictor,
    examples: Sequence[Example],
    pairs: Sequence[TokenPair],
    blind_prompt: list[int],
    other_pairs: Sequence[TokenPair] = (),
) -> tuple[list[ScoredChoices], list[float]]:
    """The scored choices of each example, and ln P of `other_pairs` (same batches).

    Args:
        pairs: (prompt, choice) for every choice of every example, in order.
        blind_prompt: replaces the prompt when choices are scored without it.
    """
    blind_pairs = [(blind_prompt, choice) for _, choice in pairs]
    scores = predictor.score_pairs([*pairs, *blind_pairs, *other_pairs])
    logprobs = [score.logprob for score in scores]
    without_prompt = logprobs[len(pairs) : 2 * len(pairs)]
    scored, first = [], 0
    for example in examples:
        own = slice(first, first + len(example.choices))
        first = own.stop
        scored.append(
            ScoredChoices(
                logprobs=logprobs[own],
                without_prompt=without_prompt[own],
                num_tokens=[len(choice) for _, choice in pairs[own]],
                num_bytes=[len(text.encode()) for text in example.choices],
                right=example.answer,
            )
        )
    return scored, logprobs[2 * len(pairs) :]


def choice_columns(scored: Sequence[ScoredChoices]) -> dict[str, np.ndarray]:
    """Statistics of every example by name, (N,) float64 each; NaN with one choice."""
    columns = dict(items=np.ones(len(scored)))
    for prefix, field in (('', 'logprobs'), ('blind_', 'without_prompt')):
        for rule in RULES:
            right = [
                _choose(choices, field, rule) == choices.right for choices in scored
            ]
            columns[prefix + rule] = np.array(right, np.float64)
    columns['chance'] = np.array([1 / len(c.num_tokens) for c in scored], np.float64)
    single = columns['chance'] == 1
    return {
        name: np.where(single & (name != 'items'), np.nan, column)
        for name, column in columns.items()
    }


def _choose(choices: ScoredChoices, field: str, rule: str) -> int:
    """The index of the likeliest answer; the first one of a tie."""
    lengths = dict(accuracy_tokens=choices.num_tokens, accuracy_bytes=choices.num_bytes)
    divisors = np.maximum(lengths.get(rule, 1), 1)
    return int(np.argmax(np.asarray(getattr(choices, field)) / divisors))


def chance_figures(columns: bootstrap.Columns) -> dict[str, dict]:
    """The expected accuracy of a random choice, for every rule."""
    return dict.fromkeys(RULES, dict(value=float(columns['chance'].mean())))
