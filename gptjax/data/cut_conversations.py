"""Fits conversations into a number of tokens: whole turns where possible.

Conversations in a template of ours are cut between their turns, which are encoded one
by one. A Jinja template writes a conversation as a whole, so for it parts of the
conversation are encoded anew.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from gptjax.data import jinja_template
from gptjax.data.chat_template import Turn, encode_turns, join_turns, uses_jinja
from gptjax.data.jinja_template import UnstableTemplate

Segment = tuple[list[int], list[bool]]  # tokens, whether each is trained on


def cut_messages(
    messages: Sequence[dict], tokenizer, template: str, room: int, counts: Counter
) -> Iterator[Segment]:
    """Cuts a conversation into segments of at most `room` tokens: `cut_conversation`.

    With a Jinja template a segment is the rendering of the system message and some of
    the others, from a message of the user on. If the template writes earlier replies
    in another way than the last one (Qwen 3 leaves out thoughts), each reply is
    learned in a segment of its own, as the model would write it.

    Raises:
        RefusedMessages: before the first segment, by a Jinja template.
    """
    if not uses_jinja(tokenizer, template):
        turns = encode_turns(messages, tokenizer, template)
        yield from cut_conversation(turns, tokenizer.start_ids, room, counts)
        return
    system, rest = split_beginning(messages)
    try:
        # Whether every place is found is known before the first segment is used.
        found = Counter()
        segments = list(_cut_rendered(system, rest, tokenizer, room, found))
    except UnstableTemplate:
        found, segments = Counter(), []
        for number, message in enumerate(rest):
            if _is_trained(message):
                before = [dict(earlier, train=False) for earlier in rest[:number]]
                segments += _cut_rendered(
                    system, [*before, message], tokenizer, room, found
                )
    counts.update(found)
    yield from segments


def split_beginning(messages: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """(system messages, messages from the first one of the user on).

    Many Jinja templates refuse a conversation that begins with a reply.
    """
    roles = [message['role'] for message in messages]
    num_system = next(
        (number for number, role in enumerate(roles) if role != 'system'), len(roles)
    )
    first = num_system
    while first < len(roles) and roles[first] == 'assistant':
        first += 1
    return list(messages[:num_system]), list(messages[first:])


def _is_trained(message) -> bool:
    return message['role'] == 'assistant' and message.get('train', True)


def _cut_rendered(system, rest, tokenizer, room, counts) -> Iterator[Segment]:
    while rest:
        trained = [n for n, message in enumerate(rest) if _is_trained(message)]
        if not trained:
            return
        rest = rest[: trained[-1] + 1]
        segment = jinja_template.encode_conversation([*system, *rest], tokenizer)
        end = len(rest)
        while len(segment[0]) > room and len(trained) > 1:
            # About as many turns as fit, and at least one less than before.
            share = room / len(segment[0])
            kept = max(1, min(len(trained) - 1, int(len(trained) * share)))
            trained = trained[:kept]
            end = trained[-1] + 1
            segment = jinja_template.encode_conversation(
                [*system, *rest[:end]], tokenizer
            )
        if len(segment[0]) > room:
            segment = _shorten(system, rest[:end], tokenizer, room, counts)
        if segment is not None and any(segment[1]):
            counts.update(pieces=1, turns=len(trained))
            yield segment
        # The next segment begins with the user's message before the next reply.
        rest = rest[end:]
        while rest and rest[0]['role'] == 'assistant':
            rest = rest[1:]


def _shorten(system, messages, tokenizer, room, counts) -> Segment | None:
    """The only trained reply, with as much before it as fits."""
    *before, reply = messages
    users = [n for n, message in enumerate(before) if message['role'] == 'user']
    before = before[users[-1] :] if users else before[-1:]
    tokens, trained = jinja_template.encode_conversation(
        [*system, *before, reply], tokenizer
    )
    if True not in trained:  # the template leaves out such a reply
        return None
    num_reply, num_prompt = sum(trained), trained.index(True)
    content = tokenizer.encode(before[0]['content']) if before else []
    shared = room - (num_prompt - len(content))  # for the content and the reply
    if shared < 2:
        counts['long_system'] += bool(system)
        return None
    kept = min(num_reply, max(shared * 3 // 4, shared - len(content)))
    for more in range(5):  # a text that begins later may have other tokens
        excess = num_prompt + kept - room
        if excess <= 0:
            break
        text = tokenizer.decode(content[excess + more :])
        before = [dict(before[0], content=text), *before[1:]]
        tokens, trained = jinja_template.encode_conversation(
            [*system, *before, reply], tokenizer
        )
        content, num_prompt = tokenizer.encode(text), trained.index(True)
        counts['cut_prompts'] += 1
    end = num_prompt + kept
    if end > room:
        return None
    if kept < num_reply:
        counts.update(cut_turns=1, cut_tokens=num_reply - kept)
    return tokens[:end], trained[:end]


# ---- Conversations in a template of ours


def cut_conversation(
    turns: list[Turn], start_ids: list[int], room: int, counts: Counter
) -> Iterator[Segment]:
    """Cuts a conversation between turns into segments of at most `room` tokens.

    Every segment begins with BOS and the system message, and ends with a reply. Turns
    without a reply are left out. A reply is in one segment with the turn that it
    answers. If a reply alone is too long, its end is cut off; if the turn that it
    answers is too long, that turn's beginning is cut off. With room 9:

        system S, user A, assistant B, user C, assistant D
        → <bos> S A B, <bos> S C D

    Args:
        room: T + 1.
        counts: gets `pieces` (segments), `turns` (trained), `cut_turns` and
            `cut_tokens` (of replies), `cut_prompts` (turns before a reply) and
            `long_system` (conversations skipped, as the system message takes more than
            half of the room).
    """
    num_system = next(
        (number for number, turn in enumerate(turns) if not turn.system), len(turns)
    )
    head, _ = join_turns(start_ids, turns[:num_system])
    turns = turns[num_system:]
    if len(head) > room // 2:
        counts['long_system'] += 1
        return
    room -= len(head)
    segments, used = [[]], 0
    for place, turn in enumerate(turns):
        fits = used + turn.num_tokens <= room
        if fits and (segments[-1] or not turn.trained or place == 0):
            segments[-1].append(turn)
            used += turn.num_tokens
            continue
        before = turns[place - 1] if turn.trained and place else None
        segments.append(_begin_segment(before, turn, room, counts))
        used = sum(turn.num_tokens for turn in segments[-1])
    for segment in segments:
        while segment and not segment[-1].trained:
            segment.pop()
        if segment:
            counts.update(pieces=1, turns=sum(turn.trained for turn in segment))
            yield join_turns(head, segment)


def _begin_segment(
    before: Turn | None, turn: Turn, room: int, counts: Counter
) -> list[Turn]:
    """The first turns of a segment: `turn`, after the turn `before` that it answers."""
    if before is None:
        if turn.num_tokens <= room:
            return [turn]
        if not turn.trained:
            return []  # the segment of the reply gets the end of this turn
        return [_cut_end(turn, room, counts)]
    reply = turn
    most = max(room * 3 // 4, room - before.num_tokens)
    if turn.num_tokens > most:
        reply = _cut_end(turn, most, counts)
    context = before._replace(trained=False)
    left = room - reply.num_tokens - len(context.prefix)
    if len(context.content) > left:
        counts['cut_prompts'] += 1
        context = context._replace(
            content=context.content[len(context.content) - left :]
        )
    return [context, reply]


def _cut_end(turn: Turn, size: int, counts: Counter) -> Turn:
    """Keeps the first `size` tokens of a turn."""
    kept = turn.content[: size - len(turn.prefix)]
    counts.update(cut_turns=1, cut_tokens=len(turn.content) - len(kept))
    return turn._replace(content=kept)


# ---- The end of a conversation


def encode_last_turns(
    messages: Sequence[dict], tokenizer, room: int, unfinished: bool = False
) -> tuple[list[int], int, bool]:
    """The rendering of the last messages that fit `room`, by a Jinja template.

    Returns:
        (tokens, number of messages left out, whether the beginning of what is left
        was cut off).
    """
    system, rest = split_beginning(messages)
    if not rest:  # only replies
        system, rest = [], list(messages)
    starts = [n for n, m in enumerate(rest) if m['role'] == 'user' or n == 0]
    for start in starts:
        tokens, _ = jinja_template.encode_conversation(
            [*system, *(dict(m, train=False) for m in rest[start:])],
            tokenizer,
            unfinished,
        )
        if len(tokens) <= room:
            break
    dropped = len(messages) - len(system) - len(rest[start:])
    if len(tokens) <= room:
        return tokens, dropped, False
    head = tokenizer.start_ids
    return [*head, *tokens[len(head) - room :]], dropped, True
