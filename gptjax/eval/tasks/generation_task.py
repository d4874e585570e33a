"""Replies that the model writes, compared with reference replies: kind 'generation'."""

from collections.abc import Sequence

from gptjax.core import console
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks import reply_metrics
from gptjax.eval.tasks.examples import Example, shuffle_references
from gptjax.eval.tasks.predictor import Predictor, draw_replies
from gptjax.infer.request import SamplingParameters

# Figures that need no reference: the references are a baseline for them.
VARIETY = ('repetition', 'words', *reply_metrics.DISTINCT)


def evaluate_generation(
    predictor: Predictor, examples: Sequence[Example], about: str
) -> dict:
    """The task's result: the model replies to every example.

    There are two baselines. One replies with the reference of another example. The
    other one, only for figures that need no reference, is the references themselves.
    """
    settings = predictor.settings
    sampling = dict(
        max_tokens=predictor.max_reply_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    room = predictor.max_prompt_tokens
    prompts = [predictor.encode_prompt(example.prompt) for example in examples]
    cut_prompts = [prompt[-room:] for prompt in prompts]
    parameters = SamplingParameters(**sampling)
    replies = draw_replies(predictor, examples, cut_prompts, parameters)
    answers = [reply.text.strip() for reply in replies]
    references = [example.references for example in examples]
    first_references = [texts[0] for texts in references]
    other_references = shuffle_references(examples, settings.seed)

    bootstrap_settings = predictor.bootstrap_settings
    measured = []
    with console.progress_bar('computing metrics', 3, 'systems') as advance:
        for texts in (answers, other_references, first_references):
            columns = reply_metrics.measure_replies(texts, references)
            figures = _compute_figures(texts, columns, bootstrap_settings)
            measured.append((columns, figures))
            advance()
    (columns, figures), (_, other_figures), (_, reference_figures) = measured
    compared = {n: f for n, f in other_figures.items() if n not in VARIETY}
    results.add_baseline(figures, "another item's reference", compared)
    variety = {name: reference_figures[name] for name in VARIETY}
    results.add_baseline(figures, 'the references', variety)
    return results.make_result(
        'generation',
        about,
        figures,
        columns,
        [
            dict(example.identity(), reply=answer, references=list(example.references))
            for example, answer in zip(examples, answers, strict=True)
        ],
        bootstrap_settings,
        dict(
            seed=settings.seed,
            **sampling,
            template=predictor.template,
            prompt_tokens_at_most=room,
            prompts_cut_from_the_left=sum(len(p) > room for p in prompts),
        ),
        signatures=reply_metrics.signatures(references),
    )


def _compute_figures(texts, columns, bootstrap_settings) -> dict:
    """All figures of `reply_metrics`, also those that are not functions of sums."""
    figures = bootstrap.compute_figures(
        columns, reply_metrics.FIGURES, bootstrap_settings
    )
    resamples, level, seed = bootstrap_settings
    for name, n in reply_metrics.DISTINCT.items():
        samples = reply_metrics.resample_distinct(texts, n, resamples, seed)
        value = reply_metrics.distinct(texts, n)
        figures[name] = bootstrap.make_figure(value, samples, level)
    return figures
