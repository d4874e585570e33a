"""The task `dialogue`: replies in conversations that the model was not trained on.

Of each conversation in RUN/dialogue's held-out split one reply that somebody gave is
drawn. The figures are

    reply_bits         bits per byte of it, given what was said before; the end of the
                       turn is predicted as well, and costs bits but counts no byte
    reply_bits_open    the same without the end
    accuracy …         whether it is likelier than replies from other conversations,
                       ends included, by the rules of choice_task.py
    stops, stops_drawn how often the model's own reply ends by itself within
                       `eval.max_tokens`: the likeliest one, and one drawn at
                       temperature 1

Every model is evaluated in its own template. In 'text' the end of a turn is an empty
line, which may be one token with the last character: there `reply_bits` is the figure
to compare, as every template pays for its end in it. What a model does not have room
for loses its oldest turns.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.data.conversations import choose_replies
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks import choice_task
from gptjax.eval.tasks.examples import Example, choice_examples
from gptjax.eval.tasks.predictor import Predictor, draw_replies
from gptjax.infer.request import SamplingParameters

TEMPERATURES = dict(stops=0.0, stops_drawn=1.0)
NUM_TRANSCRIPTS = 8  # in the report


def bits_per_byte(nats: str) -> bootstrap.Figure:
    """The figure of bits per byte from the sums of a column of nats."""
    mean = bootstrap.mean_figure(nats, 'bytes')
    return lambda sums: mean(sums) / math.log(2)


FIGURES = dict(
    reply_bits=bits_per_byte('nats'),
    reply_bits_open=bits_per_byte('nats_open'),
    **choice_task.FIGURES,
    **{name: bootstrap.mean_figure(name) for name in TEMPERATURES},
    reply_tokens=bootstrap.mean_figure('reply_tokens'),
)
FIGURES_BY_SOURCE = ('reply_bits', 'accuracy', 'stops')


# ---- examples and transcripts


def read_dialogue_examples(workdir: Path, settings) -> list[Example]:
    """Examples with a reference and choices, of held-out conversations."""
    path = workdir / 'dialogue' / 'validation.jsonl'
    if not path.exists() or artifact.is_unfinished(path.parent):
        raise UserError(
            f'--tasks=dialogue: {path} is missing: name a fine-tuned run whose '
            'conversations are asked, as --tasks=dialogue:runs/sft'
        )
    views = list(storage.read_jsonl(path))
    chosen = choose_replies(views, settings.conversations, settings.seed)
    replies = [Example(id, prompt, (reply,)) for id, prompt, reply in chosen]
    choices = choice_examples(replies, settings.choices, settings.seed)
    return [
        with_choices._replace(references=with_reply.references)
        for with_reply, with_choices in zip(replies, choices, strict=True)
    ]


def write_transcripts(
    workdir: Path, examples: Sequence[Example], results_by_model: dict[str, dict]
) -> None:
    """Writes RUN/samples/dialogue.json: examples with each model's replies."""
    transcripts = [
        dict(
            id=example.id,
            messages=example.prompt,
            reference=example.references[0],
            replies={
                model: {key: result['items'][number][key] for key in ('reply', 'drawn')}
                for model, result in results_by_model.items()
            },
        )
        for number, example in enumerate(examples[:NUM_TRANSCRIPTS])
    ]
    storage.write_json(workdir / 'samples' / 'dialogue.json', transcripts)


# ---- the evaluation


def evaluate_dialogue(predictor: Predictor, examples: Sequence[Example]) -> dict:
    """The task's result, of kind 'dialogue'.

    Baselines: chance, the same without the prompt, and the people's own replies.
    """
    compute_figures = partial(
        bootstrap.compute_figures, settings=predictor.bootstrap_settings
    )
    prompts = [
        encode_recent_messages(predictor, example.prompt) for example in examples
    ]
    columns, nats_without_prompt = _score_replies(predictor, examples, prompts)
    replies = {}
    for name, temperature in TEMPERATURES.items():
        parameters = SamplingParameters(predictor.max_reply_tokens, temperature)
        drawn = draw_replies(predictor, examples, prompts, parameters)
        columns[name] = np.array([r.finish == 'stop' for r in drawn], np.float64)
        replies[name] = drawn
    columns['reply_tokens'] = np.array(
        [len(reply.tokens) for reply in replies['stops']], np.float64
    )

    figures = compute_figures(columns, FIGURES)
    columns_without_prompt = dict(columns, nats=nats_without_prompt)
    figures_without_prompt = dict(
        reply_bits=FIGURES['reply_bits'], **choice_task.FIGURES_WITHOUT_PROMPT
    )
    without_prompt = compute_figures(columns_without_prompt, figures_without_prompt)
    results.add_baseline(figures, 'without the prompt', without_prompt)
    results.add_baseline(figures, 'chance', choice_task.chance_figures(columns))
    lengths = np.array(
        [len(_encode_reply(predictor, example.references[0])) for example in examples]
    )
    people = dict(
        stops=dict(value=float((lengths <= predictor.max_reply_tokens).mean())),
        reply_tokens=dict(value=float(lengths.mean())),
    )
    results.add_baseline(figures, 'the people', people)
    sources = np.array([example.id.split('/')[0] for example in examples])
    if len(set(sources)) > 1:
        for source in dict.fromkeys(sources):
            chosen = {n: column[sources == source] for n, column in columns.items()}
            for name, figure in compute_figures(chosen, FIGURES).items():
                if name in FIGURES_BY_SOURCE:
                    figures[f'{name}/{source}'] = figure

    return results.make_result(
        'dialogue',
        'replies of held-out conversations; intervals over conversations',
        figures,
        columns,
        [
            dict(
                example.identity(),
                source=str(source),
                reply=greedy.text.strip(),
                drawn=drawn.text.strip(),
            )
            for example, source, greedy, drawn in zip(
                examples, sources, *replies.values(), strict=True
            )
        ],
        predictor.bootstrap_settings,
        dict(
            seed=predictor.settings.seed,
            template=predictor.template,
            max_tokens=predictor.max_reply_tokens,
            choices=predictor.settings.choices,
            prompt_tokens_at_most=predictor.max_prompt_tokens,
        ),
    )


def _score_replies(predictor, examples, prompts) -> tuple[dict, np.ndarray]:
    """Statistics of each example's reply; and its nats without the prompt, (N,)."""
    tokenizer, template = predictor.tokenizer, predictor.template
    # What stands before a reply to nothing: BOS, and the assistant's opening.
    empty = dict(role='assistant', content='')
    (empty_turn,) = chat_template.encode_turns([empty], tokenizer, template)
    choice_pairs, unended_pairs = [], []
    for example, prompt in zip(examples, prompts, strict=True):
        for choice in example.choices:
            choice_pairs.append((prompt, _encode_reply(predictor, choice)))
        reply = _encode_reply(predictor, example.references[0], unfinished=True)
        unended_pairs.append((prompt, reply))
    scored, unended_logprobs = choice_task.score_choices(
        predictor,
        examples,
        choice_pairs,
        [tokenizer.bos_id, *empty_turn.prefix],
        unended_pairs,
    )
    columns = dict(
        choice_task.choice_columns(scored),
        bytes=np.array([c.num_bytes[c.right] for c in scored], np.float64),
        nats=-np.array([c.logprobs[c.right] for c in scored], np.float64),
        nats_open=-np.array(unended_logprobs, np.float64),
    )
    return columns, -np.array([c.without_prompt[c.right] for c in scored], np.float64)


def encode_recent_messages(predictor: Predictor, messages: Sequence[dict]) -> list[int]:
    """The prompt in the model's template, without its oldest turns if need be.

    What a system message says stays. Where the last turn alone is too long, its
    beginning goes, and BOS with it.
    """
    room = predictor.max_prompt_tokens
    system = [m for m in messages[:1] if m['role'] == 'system']
    turns = list(messages[len(system) :])
    while True:
        tokens = predictor.encode_prompt([*system, *turns])
        if len(tokens) <= room or len(turns) == 1:
            return tokens[-room:]
        turns = turns[1:]


def _encode_reply(predictor, text, unfinished=False) -> list[int]:
    message = dict(role='assistant', content=text)
    (turn,) = chat_template.encode_turns(
        [message], predictor.tokenizer, predictor.template, unfinished
    )
    return turn.content
