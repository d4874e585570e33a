"""The text that is streamed while a reply runs, compared with the decoded reply."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.infer.request import Token
from gptjax.infer.request_state import StreamedText
from gptjax.tokenizer.tokenizer import StreamDecoder

# Letters, two letters, the bytes of é and of €, no byte, three letters.
TOKENS = [
    *(b'a', b'b', b'ab', b'\n', b'\xc3', b'\xa9', b'\xe2', b'\x82', b'\xac'),
    *(b'', b'abc'),
]


def tokenizer_of(token_bytes):
    stub = SimpleNamespace(bytes_of=token_bytes.__getitem__)
    stub.stream = lambda special: StreamDecoder(stub, special)
    return stub


def stream(ids, stop=(), token_bytes=TOKENS):
    """(texts of each push and the end, tokens shown, stop string)."""
    reply, texts, tokens = StreamedText(tokenizer_of(token_bytes), stop), [], []
    for place, token in enumerate(ids):
        update = reply.push(Token(token, float(place)))
        texts.append(update.text)
        tokens += update.tokens
        if update.stopped_by is not None:
            return texts, tokens, update.stopped_by
    update = reply.finish()
    return [*texts, update.text], [*tokens, *update.tokens], None


def decoded(ids):
    return b''.join(TOKENS[i] for i in ids).decode('utf-8', 'replace')


tokens = st.lists(st.integers(0, len(TOKENS) - 1), max_size=12)
stops = st.lists(st.text('ab\né', min_size=1, max_size=3), max_size=3)


@given(tokens, stops)
def test_all_text_is_shown_once_up_to_the_first_completed_stop_string(ids, stop):
    texts, shown_tokens, stopped_by = stream(ids, stop)
    text, whole = ''.join(texts), decoded(ids)
    if stopped_by is None:
        assert text == whole and not any(s in whole for s in stop)
        assert [token.id for token in shown_tokens] == ids
        return
    assert stopped_by in stop and whole.startswith(text + stopped_by)
    assert not any(s in text for s in stop)
    before = decoded(ids[: len(texts) - 1])  # without the last pushed token
    assert not any(s in before for s in stop if '\ufffd' not in before)
    assert [token.id for token in shown_tokens] == ids[: len(shown_tokens)]


def first_stop(text, stop):
    """(text before the stop string, stop string) that is completed first."""
    for end in range(len(text) + 1):
        ended = [s for s in stop if s and text[:end].endswith(s)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.text('abc\né', max_size=10),
    st.lists(st.text('abc\né', min_size=1, max_size=4), max_size=4),
    st.sets(st.integers(1, 12)),
)
def test_the_split_into_tokens_changes_no_stop(text, stop, cuts):
    content = text.encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    split = [content[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    texts, _, stopped_by = stream(range(len(split)), stop, split)
    assert (''.join(texts), stopped_by) == first_stop(text, stop)


@pytest.mark.parametrize(
    'ids, stop, texts',
    [
        # A stop string has two tokens: the text of the first is held back.
        ([0, 1, 0], ['ba'], ['a', '', '']),
        # Held back first, but it does not become a stop string.
        ([0, 1, 1], ['ba'], ['a', '', 'b', 'b']),
        # Held back until the end.
        ([0, 1], ['ba'], ['a', '', 'b']),
        # Half a character, a whole one, then part of a character that never ends.
        ([4, 5, 6, 7], [], ['', 'é', '', '', '\ufffd']),
        # A stop string in the middle of a token.
        ([2], ['b'], ['a']),
        # With two stop strings, the one that is completed first ends the reply.
        ([10], ['abc', 'b'], ['a']),
        ([0, 1], ['abc', 'b'], ['', 'a']),
        # If two end at the same character, the longer one ends the reply.
        ([10], ['bc', 'abc'], ['']),
        # The longest suffix of the text that begins a stop string is held back.
        ([1, 1, 3], ['bb\n'], ['', '', '']),
    ],
    ids=str,
)
def test_texts_by_hand(ids, stop, texts):
    assert stream(ids, stop)[0] == texts


def test_tokens_come_with_their_text():
    reply = StreamedText(tokenizer_of(TOKENS), ['bb'])
    shown_ids = [[t.id for t in reply.push(Token(i)).tokens] for i in (0, 4, 5, 1, 0)]
    assert shown_ids == [[0], [], [4, 5], [], [1, 0]]
    # A token that begins before the stop string is part of the reply.
    reply = StreamedText(tokenizer_of(TOKENS), ['b'])
    assert [t.id for t in reply.push(Token(2)).tokens] == [2]
