"""The task `dialogue`: replies in conversations that the model was not trained on.

One reply of a person is taken from each conversation of RUN/dialogue's held-out split;
`dialogue:RUN:SOURCES` leaves out those of other sources, such as answers to
problems. The figures are

    reply_bits         bits per byte of the reply, given the messages before it. The
                       end of the turn is predicted too: its bits count, and it has no
                       bytes
    reply_bits_open    the same without the end of the turn
    accuracy …         whether the reply is likelier than replies of other
                       conversations, by the rules of choice_task.py; with the end of
                       the turn
    stops, stops_drawn how often the model ends its own reply within
                       `eval.max_tokens`: the greedy one, and one at temperature 1

Every model is evaluated in its own chat template. In the template 'text' an empty line
ends a turn, and one token may contain both that and the last character of the reply.
Compare templates by `reply_bits`, which includes the end of the turn in all of them. A
prompt that is too long loses its oldest messages.
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
from gptjax.data.cut_conversations import split_beginning
from gptjax.data.render_process import RefusedMessages
from gptjax.eval import bootstrap, results
from gptjax.eval.tasks import choice_task
from gptjax.eval.tasks.examples import Example, choice_examples
from gptjax.eval.tasks.predictor import Predictor, draw_replies
from gptjax.infer.request import SamplingParameters

TEMPERATURES = dict(stops=0.0, stops_drawn=1.0)
NUM_TRANSCRIPTS = 8  # in the report


def bits_per_byte(nats: str) -> bootstrap.Figure:
    """The figure of bits per byte from the column of nats with this name."""
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


def read_dialogue_examples(name: str, workdir: Path, settings) -> list[Example]:
    """Examples with a reference and choices, from held-out conversations.

    `name` is 'dialogue', 'dialogue:RUN' with another run's conversations, or
    'dialogue:RUN:chitchat+own' with those of some sources. If there are too few
    replies to choose from, the only choice is the right reply.
    """
    _, run, sources = [*name.split(':', 2), '', ''][:3]
    folder = Path(run).expanduser().absolute() if run else workdir
    path = folder / 'dialogue' / 'validation.jsonl'
    if not path.exists() or artifact.is_unfinished(path.parent):
        raise UserError(
            f'--tasks=dialogue: {path} does not exist: name a fine-tuned run whose '
            'conversations to use, as in --tasks=dialogue:runs/sft'
        )
    conversations = list(storage.read_jsonl(path))
    if sources:
        there = {view['source'] for view in conversations}
        if missing := set(sources.split('+')) - there:
            raise UserError(
                f'--tasks={name}: {folder} has no held-out conversation of '
                f'{", ".join(sorted(missing))}: use {", ".join(sorted(there))}'
            )
        conversations = [v for v in conversations if v['source'] in sources.split('+')]
    chosen = choose_replies(conversations, settings.conversations, settings.seed)
    replies = [Example(id, prompt, (reply,)) for id, prompt, reply in chosen]
    different = {example.references for example in replies}
    if len(different) < settings.choices:
        print(
            f'dialogue: the accuracies are left out: eval.choices={settings.choices} '
            f'is more than the {len(different)} different replies'
        )
        return [example._replace(choices=example.references) for example in replies]
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


def skip_refused(predictor: Predictor, examples: list[Example]) -> list[Example]:
    """The examples that the model's chat template writes; prints how many it refuses.

    They may be of a run with another template.
    """
    if not chat_template.uses_jinja(predictor.tokenizer, predictor.template):
        return examples
    kept, refusals = [], []
    for example in examples:
        try:
            encode_recent_messages(predictor, example.prompt)
            _encode_reply(predictor, example, example.references[0])
            kept.append(example)
        except RefusedMessages as error:
            refusals.append(error)
    if not kept:
        raise refusals[-1]
    if refusals:
        print(
            f'dialogue: left out {len(refusals):,} of {len(examples):,} conversations: '
            f'{refusals[-1]}'
        )
    return kept


def evaluate_dialogue(predictor: Predictor, examples: Sequence[Example]) -> dict:
    """The task's result, of kind 'dialogue'.

    Baselines: chance, the model without the prompt, and the replies of people.
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
        replies[name] = draw_replies(predictor, examples, prompts, parameters)
        stops = [reply.finish == 'stop' for reply in replies[name]]
        columns[name] = np.array(stops, np.float64)
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
        [
            len(_encode_reply(predictor, example, example.references[0]))
            for example in examples
        ]
    )
    people = dict(
        stops=dict(value=float((lengths <= predictor.max_reply_tokens).mean())),
        reply_tokens=dict(value=float(lengths.mean())),
    )
    results.add_baseline(figures, 'the people', people)
    sources = [example.id.split('/')[0] for example in examples]
    figures |= bootstrap.compute_figures_by_group(
        sources,
        columns,
        {name: FIGURES[name] for name in FIGURES_BY_SOURCE},
        predictor.bootstrap_settings,
    )
    if np.isnan(columns['chance']).all():  # there was nothing to choose from
        figures = {
            name: figure
            for name, figure in figures.items()
            if name.split('/')[0] not in choice_task.RULES
        }
    return results.make_result(
        'dialogue',
        'replies in held-out conversations; intervals over conversations',
        figures,
        columns,
        [
            dict(
                example.identity(),
                source=source,
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
    choice_pairs, unended_pairs = [], []
    for example, prompt in zip(examples, prompts, strict=True):
        for choice in example.choices:
            choice_pairs.append((prompt, _encode_reply(predictor, example, choice)))
        reply = _encode_reply(predictor, example, example.references[0], True)
        unended_pairs.append((prompt, reply))
    scored, unended_logprobs = choice_task.score_choices(
        predictor,
        examples,
        choice_pairs,
        chat_template.beginning_of_reply(tokenizer, template),
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
    """The prompt in the model's template; one that is too long loses old messages.

    A system message stays: `system A B C` → `system C`. If the last message alone is
    too long, its first tokens are dropped, and BOS with them.
    """
    room = predictor.max_prompt_tokens
    system = [m for m in messages[:1] if m['role'] == 'system']
    recent = list(messages[len(system) :])
    while True:
        recent = _begin_with_user(predictor, recent)
        tokens = predictor.encode_prompt([*system, *recent])
        if len(tokens) <= room or len(recent) == 1:
            return tokens[-room:]
        recent = recent[1:]


def _begin_with_user(predictor, messages: Sequence[dict]) -> list[dict]:
    """Without the first replies, which many Jinja templates refuse."""
    if not chat_template.uses_jinja(predictor.tokenizer, predictor.template):
        return [*messages]
    system, rest = split_beginning(messages)
    return [*system, *rest] if rest else [*messages]


def _encode_reply(predictor, example, text, unfinished=False) -> list[int]:
    tokenizer, template = predictor.tokenizer, predictor.template
    messages = _begin_with_user(predictor, example.prompt)
    return chat_template.encode_reply(messages, text, tokenizer, template, unfinished)
