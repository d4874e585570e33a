"""How messages become a prompt, and where a reply to them ends.

Two templates. A pretrained model has read conversations as plain text, where an
empty line ends a turn (`gptjax.data.conversation`); 'text' writes a prompt so:

    <bos> Be kind. ¶ ¶ Hi! ¶ ¶ Hello, how are you? ¶ ¶ Fine. ¶ ¶

After fine-tuning a model knows turns by special tokens; 'turns' writes those:

    <bos> <|system|> Be kind. <|end|> <|user|> Hi! <|end|>
    <|assistant|> Hello, how are you? <|end|> <|user|> Fine. <|end|> <|assistant|>
"""

import re
from collections.abc import Sequence

from gptjax.errors import UserError

ROLES = ('system', 'user', 'assistant')
TEMPLATES = ('text', 'turns')
TURN_END = '\n\n'  # of 'text'


def prompt_of(
    messages: Sequence[dict], tokenizer, template: str, continue_last: bool = False
) -> list[int]:
    """The token ids after which the assistant's next message begins.

    Args:
        messages: dicts of `role` and `content`, in order. What the content spells
            is text: it never becomes a special token.
        tokenizer: of the model.
        template: 'text' or 'turns'.
        continue_last: the last message is the assistant's, and is gone on with.

    Raises:
        UserError: no messages, a role that does not exist, or a last message that
            cannot be gone on with.
    """
    if template not in TEMPLATES:
        raise UserError(f'chat.template={template}: use {" or ".join(TEMPLATES)}')
    if not messages:
        raise UserError('messages is empty: send at least one')
    for number, message in enumerate(messages):
        if message['role'] not in ROLES:
            raise UserError(
                f'messages[{number}].role={message["role"]!r}: use {", ".join(ROLES)}'
            )
    if continue_last and messages[-1]['role'] != 'assistant':
        raise UserError(
            'continue_final_message: the last message has another role: send the '
            'beginning of the reply as the last one, of the role assistant'
        )
    write = {'text': _as_text, 'turns': _as_turns}[template]
    return write(messages, tokenizer, continue_last)


def stops_of(template: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(stop strings, stop tokens) that end the assistant's message."""
    if template == 'text':
        return (TURN_END,), ()
    return (), (tokenizer.specials['<|end|>'],)


def _as_text(messages, tokenizer, continue_last):
    """Paragraphs. An empty line within a message would end its turn: it goes."""
    *turns, last = [_one_turn(message['content']) for message in messages]
    if not continue_last:
        last = last.rstrip('\n') + TURN_END
    turns = [turn.rstrip('\n') for turn in turns]
    return [tokenizer.bos_id, *tokenizer.encode(TURN_END.join([*turns, last]))]


def _one_turn(text):
    return re.sub(r'\n\s*\n', '\n', text.lstrip('\n'))


def _as_turns(messages, tokenizer, continue_last):
    specials = tokenizer.specials
    tokens = [tokenizer.bos_id]
    for message in messages:
        tokens.append(specials[f'<|{message["role"]}|>'])
        tokens += tokenizer.encode(message['content'])
        tokens.append(specials['<|end|>'])
    if continue_last:
        return tokens[:-1]
    return [*tokens, specials['<|assistant|>']]
