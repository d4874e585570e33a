"""Replies that the model writes, against reference replies: kind 'generation'."""

from collections.abc import Sequence

from gptjax.core import console
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks import reply_metrics
from gptjax.eval.tasks.examples import Example, shuffle_references
from gptjax.eval.tasks.predictor import Predictor, draw_replies
from gptjax.infer.request import SamplingParameters

# Figures that need no reference, so that the references have them as well.
VARIETY = ('repetition', 'words', *reply_metrics.DISTINCT)


def evaluate_generation(
    predictor: Predictor, examples: Sequence[Example], about: str
) -> dict:
    """Lets the model answer every example; the task's result.

    Baselines: the reference of another example as the answer to this one, and, of the
    figures that need no reference, the references themselves.
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
    with console.progress_bar('scoring answers', 3, 'systems') as advance:
        columns = reply_metrics.measure_replies(answers, references)
        figures = _compute_figures(answers, columns, bootstrap_settings)
        advance()
        other_figures = bootstrap.compute_figures(
            reply_metrics.measure_replies(other_references, references),
            reply_metrics.FIGURES,
            bootstrap_settings,
        )
        advance()
        reference_figures = _compute_figures(
            first_references,
            reply_metrics.measure_replies(first_references, references),
            bootstrap_settings,
        )
        advance()
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


def _compute_figures(answers, columns, bootstrap_settings) -> dict:
    """All figures of `reply_metrics`, those that are not functions of sums included."""
    figures = bootstrap.compute_figures(
        columns, reply_metrics.FIGURES, bootstrap_settings
    )
    resamples, level, seed = bootstrap_settings
    for name, n in reply_metrics.DISTINCT.items():
        samples = reply_metrics.resample_distinct(answers, n, resamples, seed)
        value = reply_metrics.distinct(answers, n)
        figures[name] = bootstrap.make_figure(value, samples, level)
    return figures
