"""The model card of the page: what the model can do, and what to ask it."""

from pathlib import Path

from gptjax.eval.model_facts import (
    VerifiableResult,
    describe_task,
    measured_skills,
    read_facts,
)
from gptjax.serve import schemas

# Accuracy from which the card says that the model has a skill. Where there are two
# answers, guessing alone has one half.
LEARNED = 0.7
MAX_SUGGESTIONS = 6


def make_card(
    workdir: Path,
    name: str,
    engine,
    num_params: int,
    weights: str = 'whole',
    cache: str = 'whole',
) -> schemas.ModelCard:
    """The card of the model `name` of RUN, which `engine` serves.

    weights, cache: the flags of `serve`; the figures are those of the weights as
        trained.
    """
    facts = read_facts(
        workdir, engine.trained_step, engine.trained_fingerprint, num_params
    )
    remarks, skills = facts.remarks, []
    for result in facts.results.values():
        if isinstance(result, VerifiableResult):
            skills += measured_skills(result)
    if facts.is_evaluated and (weights, cache) != ('whole', 'whole'):
        remarks.append(
            f'It is served with weights {weights} and cache {cache}; the figures were '
            'measured without quantization.'
        )
    skills.sort(key=lambda pair: -pair[0].accuracy)
    suggestions = [
        schemas.Suggestion(text=question, skill=skill)
        for skill, question in sorted(skills, key=lambda pair: -pair[0].accuracy_drawn)
        if question and min(skill.accuracy, skill.accuracy_drawn) >= LEARNED
    ]
    return schemas.ModelCard(
        id=name,
        parameters=num_params,
        context=engine.context,
        vocabulary=engine.vocab_size,
        stages=facts.stages,
        can=[skill for skill, _ in skills if skill.accuracy >= LEARNED],
        cannot=[skill for skill, _ in skills if skill.accuracy < LEARNED],
        tasks=[describe_task(*item) for item in facts.results.items()],
        remarks=remarks,
        suggestions=suggestions[:MAX_SUGGESTIONS],
    )
