"""What may be shown of a reply, against the decoded whole."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.infer.request import Token
from gptjax.infer.request_state import StreamedText
from gptjax.tokenizer.tokenizer import StreamDecoder

# Letters, a pair of them, both bytes of é, the three of €, nothing at all, three
# letters.
TOKENS = [
    *(b'a', b'b', b'ab', b'\n', b'\xc3', b'\xa9', b'\xe2', b'\x82', b'\xac'),
    *(b'', b'abc'),
]


def tokenizer():
    stub = SimpleNamespace(bytes_of=TOKENS.__getitem__)
    stub.stream = lambda: StreamDecoder(stub)
    return stub


def shown(ids, stop=(), spelt=None):
    """(texts shown, tokens shown, what stopped it), push by push and at the end."""
    reply, texts, tokens = StreamedText(spelt or tokenizer(), stop), [], []
    for place, token in enumerate(ids):
        part = reply.push(Token(token, float(place)))
        texts.append(part.text)
        tokens += part.tokens
        if part.stopped_by is not None:
            return texts, tokens, part.stopped_by
    part = reply.finish()
    return [*texts, part.text], [*tokens, *part.tokens], None


def decoded(ids):
    return b''.join(TOKENS[i] for i in ids).decode('utf-8', 'replace')


tokens = st.lists(st.integers(0, len(TOKENS) - 1), max_size=12)
stops = st.lists(st.text('ab\né', min_size=1, max_size=3), max_size=3)


@given(tokens)
def test_without_stops_all_is_shown_once_and_in_order(ids):
    texts, shown_tokens, stopped = shown(ids)
    assert ''.join(texts) == decoded(ids) and stopped is None
    assert [token.id for token in shown_tokens] == ids


@given(tokens, stops)
def test_the_text_ends_before_the_first_stop_that_is_complete(ids, stop):
    texts, shown_tokens, stopped = shown(ids, stop)
    whole = decoded(ids)
    ends = [place + len(s) for s in stop if (place := whole.find(s)) >= 0]
    if stopped is None:
        assert ''.join(texts) == whole and not ends
        return
    text = ''.join(texts)
    assert stopped in stop and whole.startswith(text + stopped)
    assert not any(s in text for s in stop)
    # No other stop was complete a token earlier.
    pushed = len(texts)
    before = decoded(ids[: pushed - 1])
    assert not any(s in before for s in stop if '\ufffd' not in before)
    assert [token.id for token in shown_tokens] == ids[: len(shown_tokens)]


def first_stop(text, stop):
    """(the text before it, the stop): of whole texts, the one that ends first."""
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
def test_how_a_text_is_cut_into_tokens_changes_no_stop(text, stop, cuts):
    content = text.encode()
    places = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    spelt = [content[a:b] for a, b in zip(places, places[1:], strict=False)]
    stub = SimpleNamespace(bytes_of=spelt.__getitem__)
    stub.stream = lambda: StreamDecoder(stub)
    texts, _, stopped = shown(range(len(spelt)), stop, stub)
    assert (''.join(texts), stopped) == first_stop(text, stop)


@given(tokens, stops)
def test_what_was_shown_is_never_taken_back(ids, stop):
    """At no time is a character shown that the stop then cuts off, or half of one."""
    texts, _, _ = shown(ids, stop)
    final = ''.join(texts)
    so_far = ''
    for text in texts[:-1]:
        so_far += text
        assert final.startswith(so_far)


@pytest.mark.parametrize(
    'ids, stop, texts',
    [
        # A stop over two tokens: its first half is held back.
        ([0, 1, 0], ['ba'], ['a', '', '']),
        # Held back, and not the stop after all.
        ([0, 1, 1], ['ba'], ['a', '', 'b', 'b']),
        # Held back to the end.
        ([0, 1], ['ba'], ['a', '', 'b']),
        # Half a character, whole, then half of one that never ends.
        ([4, 5, 6, 7], [], ['', 'é', '', '', '\ufffd']),
        # A stop in the middle of a token.
        ([2], ['b'], ['a']),
        # Of two stops the one that is complete first, in whatever tokens they come.
        ([10], ['abc', 'b'], ['a']),
        ([0, 1], ['abc', 'b'], ['', 'a']),
        # Of two that end together the longer.
        ([10], ['bc', 'abc'], ['']),
        # The longest part of a stop that the text ends with.
        ([1, 1, 3], ['bb\n'], ['', '', '']),
    ],
    ids=str,
)
def test_by_hand(ids, stop, texts):
    assert shown(ids, stop)[0] == texts


def test_tokens_come_with_their_text():
    reply = StreamedText(tokenizer(), ['bb'])
    shown_ids = [[t.id for t in reply.push(Token(i)).tokens] for i in (0, 4, 5, 1, 0)]
    assert shown_ids == [[0], [], [4, 5], [], [1, 0]]
    # Of the tokens of a stop those that began before it count.
    cut = StreamedText(tokenizer(), ['b'])
    assert [t.id for t in cut.push(Token(2)).tokens] == [2]
