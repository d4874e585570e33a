"""How messages become tokens: prompts, and what is trained on.

Two templates. A pretrained model has read conversations as plain text, where an
empty line ends a turn (`conversation_text`); 'text' writes them so:

    <bos> Be kind. ¶ ¶ Hi! ¶ ¶ Hello, how are you? ¶ ¶ Fine. ¶ ¶

After fine-tuning a model knows turns by special tokens; 'turns' writes those:

    <bos> <|system|> Be kind. <|end|> <|user|> Hi! <|end|>
    <|assistant|> Hello, how are you? <|end|> <|user|> Fine. <|end|> <|assistant|>

Every stage, evaluation and the server take their tokens from here, so a prompt is
to the token what training has had before a reply.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptjax.core.console import UserError

ROLES = ('system', 'user', 'assistant')
TEMPLATES = ('text', 'turns')
TURN_END = '\n\n'  # of 'text'


def encode_conversation(
    messages: Sequence[dict], tokenizer, template: str, unfinished: bool = False
) -> tuple[list[int], list[bool]]:
    """A conversation as tokens, and which of them are to be predicted.

    Trained is what the assistant says and what ends its turn, which a model must
    learn to say as well; nothing else is:

        <bos> <|user|> Hi! <|end|> <|assistant|> Hello! <|end|>
        0     0        0   0       0             1      1

    Args:
        messages: dicts of `role` and `content`, in order. What the content spells
            is text: it never becomes a special token.
        template: 'text' or 'turns'.
        unfinished: the last message was cut off: no end of its turn is written,
            as nobody knows where it would have been.
    """
    turns = encode_turns(messages, tokenizer, template, unfinished)
    return join_turns([tokenizer.bos_id], turns)


class Turn(NamedTuple):
    """One message as tokens."""

    prefix: list[int]  # the token of the role; nothing in 'text'
    content: list[int]  # the text, and the end of the turn where it has one
    trained: bool  # `content` is to be predicted: it is the assistant's
    system: bool  # it is a system message

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + len(self.content)


def encode_turns(
    messages: Sequence[dict], tokenizer, template: str, unfinished: bool = False
) -> list[Turn]:
    """The turns of a conversation, what `encode_conversation` joins after BOS."""
    write = _turn_writer(template)
    check_roles(messages)
    written = [write(message, tokenizer, True) for message in messages[:-1]]
    written.append(write(messages[-1], tokenizer, not unfinished))
    contents = tokenizer.encode_batch([text for _, text, _ in written])
    return [
        Turn(prefix, content + end, m['role'] == 'assistant', m['role'] == 'system')
        for m, (prefix, _, end), content in zip(
            messages, written, contents, strict=True
        )
    ]


def join_turns(
    head: Sequence[int], turns: Iterable[Turn]
) -> tuple[list[int], list[bool]]:
    """(tokens, which of them are trained) of turns after the tokens of `head`."""
    tokens, trained = list(head), [False] * len(head)
    for turn in turns:
        tokens += turn.prefix + turn.content
        trained += [False] * len(turn.prefix) + [turn.trained] * len(turn.content)
    return tokens, trained


def encode_prompt(
    messages: Sequence[dict], tokenizer, template: str, continue_last: bool = False
) -> list[int]:
    """The token ids after which the assistant's next message begins.

    With `continue_last` the last message is the assistant's, and goes on.
    """
    tokens, _ = encode_conversation(messages, tokenizer, template, continue_last)
    if not continue_last:
        empty_reply = dict(role='assistant', content='')
        prefix, _, _ = _turn_writer(template)(empty_reply, tokenizer, False)
        return tokens + prefix
    if messages[-1]['role'] != 'assistant':
        raise UserError(
            'continue_final_message: the last message has another role: send the '
            'beginning of the reply as the last one, of the role assistant'
        )
    return tokens


def stop_conditions(
    template: str, tokenizer
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(stop strings, stop tokens) that end the assistant's message."""
    if template == 'text':
        return (TURN_END,), ()
    return (), (tokenizer.specials['<|end|>'],)


def check_template(template: str) -> None:
    """Raises UserError where there is no such template."""
    if template not in TEMPLATES:
        raise UserError(f'chat.template={template}: use {" or ".join(TEMPLATES)}')


def check_roles(messages: Sequence[dict]) -> None:
    """Refuses what has no messages, or a role that does not exist."""
    if not messages:
        raise UserError('messages is empty: send at least one')
    for number, message in enumerate(messages):
        if message['role'] not in ROLES:
            raise UserError(
                f'messages[{number}].role={message["role"]!r}: use {", ".join(ROLES)}'
            )


# ---- A turn: (tokens of its prefix, text, tokens that end it) -----------------


def _turn_writer(template):
    check_template(template)
    return {'text': _text_turn, 'turns': _special_turn}[template]


def _text_turn(message, tokenizer, ended):
    """A paragraph. An empty line within a message would end its turn: it goes."""
    text = re.sub(r'\n\s*\n', '\n', message['content'].lstrip('\n'))
    # Its end is encoded with it, as in pretraining: '.\n\n' may be one token.
    return [], text.rstrip('\n') + TURN_END if ended else text, []


def _special_turn(message, tokenizer, ended):
    specials = tokenizer.specials
    end = [specials['<|end|>']] if ended else []
    return [specials[f'<|{message["role"]}|>']], message['content'], end


def conversation_text(messages: Iterable[tuple[str, str]]) -> str:
    """The messages as one document: what a person would see of the chat.

    Messages that one speaker sends in a row are lines of one turn, and an empty
    line stands between turns. Speakers are not named: whoever reads the text
    tells them apart by the empty lines, and a model learns to answer after one.

        [('ann', 'hi'), ('ann', 'how are you?'), ('ben', 'fine')]
        'hi\\nhow are you?\\n\\nfine'
    """
    return '\n\n'.join(text for _, text in merge_turns(messages))


def merge_turns(messages: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """(speaker, text): messages that one sends in a row as lines of one turn.

    Blanks around a text are dropped, and so is a text that is nothing else.
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
