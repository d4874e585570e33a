"""A conversation cut into pieces that fit into a row, each with all that it needs."""

from collections import Counter
from collections.abc import Iterator

from gptjax.data.chat_template import Turn

Piece = tuple[list[int], list[bool]]  # tokens, trained


def pieces_of(
    turns: list[Turn], bos: int, room: int, counts: Counter
) -> Iterator[Piece]:
    """A conversation as pieces of at most `room` tokens, cut between turns.

    Every piece begins with BOS and the system message, if there is one, and ends
    with a reply: turns that nobody answers are left out. A reply is never cut off
    from the turn that it answers, which begins the next piece instead. A reply that
    is alone too long keeps its beginning, without an end that it did not have there;
    a turn to be answered keeps its end.

    Args:
        turns: of `chat.encode_turns`.
        bos: id of BOS.
        room: T + 1.
        counts: counts `pieces`, `turns` (trained), `cut_turns`, `cut_tokens` (of
            replies), `cut_prompts` (turns to be answered) and `long_system`
            (conversations left out, as their system message takes half the room).
    """
    head, turns = _head(turns, bos)
    if len(head) > room // 2:
        counts['long_system'] += 1
        return
    room -= len(head)
    piece, used = [], 0

    def close():
        while piece and not piece[-1].trained:
            piece.pop()
        if piece:
            counts.update(pieces=1, turns=sum(turn.trained for turn in piece))
            yield _joined(head, piece)

    for place, turn in enumerate(turns):
        if used + _length(turn) <= room and (piece or not turn.trained or place == 0):
            piece.append(turn)
            used += _length(turn)
            continue
        yield from close()
        before = turns[place - 1] if turn.trained and place else None
        piece = _begin(before, turn, room, counts)
        used = sum(map(_length, piece))
    yield from close()


def _head(turns, bos):
    """(BOS and the system messages at the beginning, the turns after them)."""
    head, number = [bos], 0
    while number < len(turns) and turns[number].system:
        head += turns[number].opening + turns[number].said
        number += 1
    return head, turns[number:]


def _begin(before: Turn | None, turn: Turn, room: int, counts) -> list[Turn]:
    """The first turns of a piece: `turn`, with the one it answers if it answers one."""
    if before is None:
        if _length(turn) <= room:
            return [turn]
        if not turn.trained:
            return []  # its reply brings back what there is room for
        return [_beginning(turn, room, counts)]
    reply = turn
    most = max(room * 3 // 4, room - _length(before))
    if _length(turn) > most:
        reply = _beginning(turn, most, counts)
    context = before._replace(trained=False)
    left = room - _length(reply) - len(context.opening)
    if len(context.said) > left:
        counts['cut_prompts'] += 1
        context = context._replace(said=context.said[len(context.said) - left :])
    return [context, reply]


def _beginning(turn: Turn, size: int, counts) -> Turn:
    """As much of a turn as `size` tokens hold; its end goes."""
    kept = turn.said[: size - len(turn.opening)]
    counts.update(cut_turns=1, cut_tokens=len(turn.said) - len(kept))
    return turn._replace(said=kept)


def _length(turn: Turn) -> int:
    return len(turn.opening) + len(turn.said)


def _joined(head, turns) -> Piece:
    tokens, trained = list(head), [False] * len(head)
    for turn in turns:
        tokens += turn.opening + turn.said
        trained += [False] * len(turn.opening) + [turn.trained] * len(turn.said)
    return tokens, trained
