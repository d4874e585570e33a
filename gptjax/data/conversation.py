"""How a conversation reads as plain text, the same for every source of them."""

from collections.abc import Iterable


def conversation_text(messages: Iterable[tuple[str, str]]) -> str:
    """The messages as one document: what a person would see of the chat.

    Messages that one speaker sends in a row are lines of one turn, and an empty
    line stands between turns. Speakers are not named: whoever reads the text
    tells them apart by the empty lines, and a model learns to answer after one.

        [('ann', 'hi'), ('ann', 'how are you?'), ('ben', 'fine')]
        'hi\\nhow are you?\\n\\nfine'

    Args:
        messages: (speaker, text) in order. Blank around a text is dropped, and
            so is a text that is nothing else.
    """
    turns = []
    previous = None
    for speaker, text in messages:
        text = text.strip()
        if not text:
            continue
        if turns and speaker == previous:
            turns[-1] += '\n' + text
        else:
            turns.append(text)
        previous = speaker
    return '\n\n'.join(turns)
