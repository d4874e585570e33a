"""Encodes messages as tokens: prompts, and conversations with a mask for training.

There are two templates of ours. 'text' writes a conversation in the way that a
pretrained model has read it: as plain text in which an empty line ends each turn.

    <bos> Be kind. ¶ ¶ Hi! ¶ ¶ Hello, how are you? ¶ ¶ Fine. ¶ ¶

'turns' puts each message between special tokens, which a model learns in fine-tuning.

    <bos> <|system|> Be kind. <|end|> <|user|> Hi! <|end|>
    <|assistant|> Hello, how are you? <|end|> <|user|> Fine. <|end|> <|assistant|>

The template 'turns' of an imported chat model is its own: see jinja_template.py.

Every stage, the evaluation and the server encode messages here. So a prompt has
exactly the tokens that training had before a reply.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import NamedTuple

from gptjax.core.console import UserError
from gptjax.data import jinja_template
from gptjax.tokenizer.tokenizer import CHAT_TURNS

ROLES = ('system', 'user', 'assistant')
TEMPLATES = ('text', 'turns')
TURN_END = '\n\n'  # in the template 'text'
# The templates after BOS, for other libraries. A text of the template 'text' is encoded
# as a whole there, and message by message here.
JINJA = dict(
    turns='{% for message in messages %}'
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    text='{% for message in messages %}'
    "{% set lines = message['content'].lstrip('\\n').split('\\n') %}"
    "{% set written = namespace(text='') %}{% for line in lines %}"
    '{% if loop.first or loop.last or line.strip() %}'
    "{% set written.text = written.text + ('' if loop.first else '\\n') + line %}"
    "{% endif %}{% endfor %}{{ written.text.rstrip('\\n') + '\\n\\n' }}{% endfor %}",
)
JINJA_BOS = '{{ bos_token }}'


def encode_conversation(
    messages: Sequence[dict], tokenizer, template: str, unfinished: bool = False
) -> tuple[list[int], list[bool]]:
    """Encodes a conversation as (tokens, whether each token is trained on).

    A model is trained on the assistant's text and on the end of the assistant's turn:

        <bos> <|user|> Hi! <|end|> <|assistant|> Hello! <|end|>
        0     0        0   0       0             1      1

    Args:
        messages: dicts of `role` and `content`, in order. The content is always
            encoded as text and never becomes a special token. A reply with
            `train=False` is not trained on.
        template: 'text' or 'turns'.
        unfinished: the last message was cut off, so its turn gets no end.
    """
    _check_messages(messages, template)
    if uses_jinja(tokenizer, template):
        return jinja_template.encode_conversation(messages, tokenizer, unfinished)
    turns = encode_turns(messages, tokenizer, template, unfinished)
    return join_turns(tokenizer.start_ids, turns)


def _check_messages(messages, template):
    if template not in TEMPLATES:
        raise UserError(f'chat.template={template}: use {" or ".join(TEMPLATES)}')
    if not messages:
        raise UserError('messages is empty: send at least one')


class Turn(NamedTuple):
    """One message as tokens."""

    prefix: list[int]  # the token of the role; empty in the template 'text'
    content: list[int]  # the text, and the end of the turn if it has one
    trained: bool  # the model is trained on `content`, a reply
    system: bool  # the role is system

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + len(self.content)


def encode_turns(
    messages: Sequence[dict], tokenizer, template: str, unfinished: bool = False
) -> list[Turn]:
    """Encodes each message; the arguments are those of `encode_conversation`.

    This is for our templates: a Jinja template has no parts that are a message's alone.
    """
    _check_messages(messages, template)
    for number, message in enumerate(messages):
        check_role(message['role'], f'messages[{number}]')
    if template == 'turns' and not {*CHAT_TURNS} <= tokenizer.specials.keys():
        raise UserError(
            'chat.template=turns: the tokenizer of this model has no chat template and '
            'no tokens for turns: use --config.chat.template=text, or import a chat '
            'model'
        )
    write = {'text': _write_text_turn, 'turns': _write_special_turn}[template]
    written = [write(message, tokenizer, True) for message in messages[:-1]]
    written.append(write(messages[-1], tokenizer, not unfinished))
    contents = tokenizer.encode_batch([text for _, text, _ in written])
    return [
        Turn(
            prefix,
            content + end,
            trained=m['role'] == 'assistant' and m.get('train', True),
            system=m['role'] == 'system',
        )
        for m, (prefix, _, end), content in zip(
            messages, written, contents, strict=True
        )
    ]


def _write_text_turn(message, tokenizer, finished):
    """(prefix tokens, text, end tokens); an empty line within a message is removed.

    Otherwise it would end the turn: 'a\\n\\nb' → 'a\\nb\\n\\n'
    """
    text = re.sub(r'\n\s*\n', '\n', message['content'].lstrip('\n'))
    # The end is encoded with the text, as in pretraining: '.\n\n' may be one token.
    return [], text.rstrip('\n') + TURN_END if finished else text, []


def _write_special_turn(message, tokenizer, finished):
    specials = tokenizer.specials
    end = [specials['<|end|>']] if finished else []
    return [specials[f'<|{message["role"]}|>']], message['content'], end


def join_turns(
    head: Sequence[int], turns: Iterable[Turn]
) -> tuple[list[int], list[bool]]:
    """Appends turns to the tokens of `head`, which are not trained on.

    Returns (tokens, whether each token is trained on).
    """
    tokens, trained = list(head), [False] * len(head)
    for turn in turns:
        tokens += turn.prefix + turn.content
        trained += [False] * len(turn.prefix) + [turn.trained] * len(turn.content)
    return tokens, trained


def encode_prompt(
    messages: Sequence[dict],
    tokenizer,
    template: str,
    continue_last: bool = False,
    tools: Sequence[dict] | None = None,
) -> list[int]:
    """Encodes the tokens after which the model writes the assistant's next message.

    With `continue_last` the model continues the last message, an assistant's. `tools`
    are described to a model whose own template can do it.
    """
    _check_messages(messages, template)
    if continue_last and messages[-1]['role'] != 'assistant':
        raise UserError(
            'continue_final_message: the last message has another role: send the '
            'beginning of the reply as the last one, of the role assistant'
        )
    if uses_jinja(tokenizer, template):
        return jinja_template.encode_prompt(messages, tokenizer, continue_last, tools)
    tokens, _ = encode_conversation(messages, tokenizer, template, continue_last)
    if continue_last or template == 'text':
        return tokens
    return [*tokens, tokenizer.specials['<|assistant|>']]


def uses_jinja(tokenizer, template: str) -> bool:
    """Whether conversations are written by the template that the tokenizer has."""
    return template == 'turns' and tokenizer.chat_template is not None


def to_jinja(template: str, tokenizer) -> str:
    """The template for libraries that write conversations by Jinja."""
    if uses_jinja(tokenizer, template):
        return tokenizer.chat_template
    return (JINJA_BOS if tokenizer.start_ids else '') + JINJA[template]


def from_jinja(jinja: str | None) -> str | None:
    """The template of ours that `jinja` is; 'text' for no template, None for others."""
    if jinja is None:
        return 'text'
    ours = {written: template for template, written in JINJA.items()}
    return ours.get(jinja.removeprefix(JINJA_BOS))


def begins_with_bos(tokenizer, template: str) -> bool:
    """Whether a conversation has BOS at its beginning, and nowhere else."""
    jinja = uses_jinja(tokenizer, template)
    return not jinja and tokenizer.start_ids == [tokenizer.bos_id]


def encode_reply(
    messages: Sequence[dict],
    reply: str,
    tokenizer,
    template: str,
    unfinished: bool = False,
) -> list[int]:
    """The tokens of a reply after the prompt of `messages`, with its end."""
    message = dict(role='assistant', content=reply)
    if not uses_jinja(tokenizer, template):
        (turn,) = encode_turns([message], tokenizer, template, unfinished)
        return turn.content
    before = [dict(message, train=False) for message in messages]
    tokens, trained = jinja_template.encode_conversation(
        [*before, message], tokenizer, unfinished
    )
    return [*compress(tokens, trained)]


def beginning_of_reply(tokenizer, template: str) -> list[int]:
    """The tokens that a reply without a prompt follows: BOS, and its turn's first."""
    if uses_jinja(tokenizer, template):
        tokens = [*tokenizer.start_ids, *jinja_template.beginning_of_reply(tokenizer)]
        return tokens or [tokenizer.bos_id]
    empty = dict(role='assistant', content='')
    (turn,) = encode_turns([empty], tokenizer, template)
    return [tokenizer.bos_id, *turn.prefix]


def encode_text_prompt(text: str, tokenizer) -> list[int]:
    """The tokens after which the model continues `text`; at least one.

    A model without a BOS continues no text after the end of another document.
    """
    return [*tokenizer.start_ids, *tokenizer.encode(text)] or [tokenizer.bos_id]


def stop_conditions(
    template: str, tokenizer
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(stop strings, stop tokens) that end the assistant's message."""
    if template == 'text':
        return (TURN_END,), ()
    if uses_jinja(tokenizer, template):
        return (), jinja_template.end_tokens(tokenizer)
    return (), (tokenizer.specials['<|end|>'],)


def check_role(role: str, location: str) -> None:
    """Refuses a role that does not exist; `location` names the message."""
    if role not in ROLES:
        fix = ''
        if role in ('tool', 'function'):
            fix = '; put what a tool said into a message of the user, or leave it out'
        raise UserError(f'{location}.role={role!r}: use {", ".join(ROLES)}{fix}')


# ---- Conversations as plain text


def conversation_text(messages: Iterable[tuple[str, str]]) -> str:
    """Writes (speaker, text) messages as one document, as a reader sees a chat.

    Consecutive messages of one speaker are lines of one turn, and an empty line ends
    a turn. Speakers are not named, so a model learns to answer after an empty line.

        [('ann', 'hi'), ('ann', 'how are you?'), ('ben', 'fine')]
        → 'hi\\nhow are you?\\n\\nfine'
    """
    return '\n\n'.join(text for _, text in merge_turns(messages))


def merge_turns(messages: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Joins consecutive (speaker, text) messages of one speaker into one turn.

    White space around a text is removed, and so are empty texts.

        [('ann', ' hi '), ('ann', 'there'), ('ben', ' ')] → (('ann', 'hi\\nthere'),)
    """
    turns = []
    for speaker, text in messages:
        text = text.strip()
        if not text:
            continue
        if turns and turns[-1][0] == speaker:
            turns[-1] = speaker, f'{turns[-1][1]}\n{text}'
        else:
            turns.append((speaker, text))
    return tuple(turns)
