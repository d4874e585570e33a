"""Conversations as segments and rows: no token is trained twice or lost uncounted."""

import random
import shutil
from collections import Counter
from itertools import compress

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import dataloader, ledger, packed_conversations
from gptjax.data.chat_template import Turn, encode_conversation
from gptjax.data.cut_conversations import cut_conversation
from gptjax.data.packed_conversations import (
    DIALOGUE,
    LONG_SYSTEM,
    _SourceWriter,
    build_dialogue,
    describe_dialogue,
    open_training_dataset,
)
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval.report.run_report import write_report
from tests.data.made_templates import TEMPLATES, Made, make_tokenizer
from tests.data.test_conversations import sums, write_chat

BOS = 1


def turn(role, *said):
    return Turn([9], list(said), role == 'assistant', role == 'system')


# ---- Segments


@pytest.mark.parametrize(
    'room, turns, expected, counts',
    [
        (
            8,
            [('user', 20, 21), ('assistant', 30, 2)],
            ['1 9 20 21 9 30! 2!'],
            dict(pieces=1, turns=1),
        ),
        # The second user message would fit into the first segment, but not its reply.
        (
            9,
            [
                ('system', 5),
                ('user', 20),
                ('assistant', 30),
                ('user', 21),
                ('assistant', 31),
            ],
            ['1 9 5 9 20 9 30!', '1 9 5 9 21 9 31!'],
            dict(pieces=2, turns=2),
        ),
        # If a reply follows a reply, the first one is context and is not trained again.
        (
            7,
            [('assistant', 30, 40), ('assistant', 31, 41), ('assistant', 32, 42)],
            ['1 9 30! 40! 9 31! 41!', '1 9 31 41 9 32! 42!'],
            dict(pieces=2, turns=3),
        ),
        # A reply that is too long loses its end.
        (
            13,
            [('user', 20), ('assistant', *range(30, 45), 2)],
            ['1 9 20 9 30! 31! 32! 33! 34! 35! 36! 37! 38!'],
            dict(pieces=1, turns=1, cut_turns=1, cut_tokens=7),
        ),
        # A message before a reply that is too long loses its beginning.
        (
            13,
            [('user', *range(20, 60)), ('assistant', 30, 2)],
            ['1 9 52 53 54 55 56 57 58 59 9 30! 2!'],
            dict(pieces=1, turns=1, cut_prompts=1),
        ),
        # There is no reply, and there is no room for one.
        (6, [('user', *range(20, 24)), ('user', 24, 25, 26)], [], {}),
        (8, [('system', *range(5)), ('assistant', 30)], [], dict(long_system=1)),
    ],
)
def test_segments_by_hand(room, turns, expected, counts):
    """The tokens as text, with '!' after each token that is trained on."""
    found = Counter()
    segments = [
        ' '.join(
            f'{t}!' if trained else f'{t}' for t, trained in zip(*one, strict=True)
        )
        for one in cut_conversation([turn(*one) for one in turns], [BOS], room, found)
    ]
    assert segments == expected and found == counts


@pytest.mark.parametrize('room', (12, 20, 64))
def test_every_reply_is_trained_once(room):
    random_ = random.Random(room)
    for _ in range(200):
        number, turns = 100, []
        for _ in range(random_.randrange(1, 9)):
            length = random_.randrange(1, 20)
            role = random_.choice(['user', 'assistant'])
            turns.append(turn(role, *range(number, number + length)))
            number += length
        if random_.random() < 0.3:
            turns.insert(0, turn('system', 5, 6))
        counts = Counter()
        found = list(cut_conversation(turns, [BOS], room, counts))
        trained = []
        for tokens, mask in found:
            assert len(tokens) == len(mask) <= room and tokens[0] == BOS
            assert tokens.count(BOS) == 1
            assert not any(mask[:2]) and any(mask)
            if turns[0].system:
                assert tokens[1:4] == [9, 5, 6]
            trained += compress(tokens, mask)
        said = [t for one in turns if one.trained for t in one.content]
        assert len(trained) == len(set(trained)) and set(trained) <= set(said)
        assert len(trained) == len(said) - counts['cut_tokens']
        assert counts['turns'] == sum(one.trained for one in turns)
        # Only truncated replies have no end.
        ends = {one.content[-1] for one in turns if one.trained}
        assert len(ends - set(trained)) == counts['cut_turns']


# ---- Rows


def make(run, workdir, template='turns', context=40, chats=()):
    """(config, RUN) with the rows of sixty small conversations, or of `chats`."""
    config = common.base()
    path = write_chat(workdir / 'own.jsonl', *(chats or sums(60)))
    config.dialogue = common.dialogue_section(own=common.source('chat', str(path)))
    config.sft = common.sft_section()
    config.chat.template = template
    config.data.update(context=context, validation_fraction=0.2)
    config.train.batch_size = 4
    run.copy_tokenizer(workdir)
    build_dialogue(config, workdir)
    return config, workdir


@pytest.fixture(scope='module')
def made(run, tmp_path_factory):
    return make(run, tmp_path_factory.mktemp('dialogue'))


@pytest.mark.parametrize('template', ('text', 'turns'))
def test_packed_conversations_are_the_conversations(run, template, tmp_path):
    _, workdir = make(run, tmp_path, template)
    manifest = storage.read_json(workdir / 'dialogue' / 'manifest.json')
    for split in ('train', 'validation'):
        expected, size = Counter(), 0
        for view in storage.read_jsonl(workdir / 'dialogue' / f'{split}.jsonl'):
            messages = view['messages']
            tokens, trained = encode_conversation(messages, run.tokenizer, template)
            expected[tuple(tokens), tuple(trained)] += 1
            size += len(messages[1]['content'])
        packed = PackedDataset(workdir / 'dialogue', split)
        found, num_predicted = Counter(), 0.0
        for batch in dataloader.validation_batches(packed, 4):
            num_predicted += batch['weights'].sum()
            for row in range(4):
                for segment in range(1, batch['segments'][row].max() + 1):
                    here = batch['segments'][row] == segment
                    tokens = batch['inputs'][row][here].tolist()
                    # The target is the next token of the same segment.
                    predicted = batch['weights'][row][here] > 0
                    targets = batch['targets'][row][here]
                    if predicted[-1]:  # the last token is only a target
                        tokens.append(int(targets[-1]))
                        predicted = np.append(predicted, False)
                    assert all(
                        targets[n] == tokens[n + 1]
                        for n in np.flatnonzero(predicted[:-1])
                    )
                    trained = [False, *(predicted[:-1].tolist())]
                    assert batch['positions'][row][here][0] == 0
                    found[tuple(tokens), tuple(trained)] += 1
        assert found == expected
        counts = manifest['splits'][split]['own']
        assert num_predicted == counts['predicted_tokens']
        assert counts['bytes'] == size
        for name in ('views', 'pieces', 'turns'):
            assert counts[name] == sum(expected.values())


def test_made_once_and_refused_for_another_config(run, tmp_path):
    config, workdir = make(run, tmp_path)
    before = storage.read_json(workdir / 'dialogue' / 'manifest.json')
    assert build_dialogue(config, workdir) == before
    other = config.copy_and_resolve_references()
    other.chat.template = 'text'
    with pytest.raises(UserError, match='chat.template: turns there, text here'):
        build_dialogue(other, workdir)
    write_chat(workdir / 'own.jsonl', *sums(61))
    with pytest.raises(UserError, match='dialogue.sources.own.path=.*now there are 1'):
        build_dialogue(config, workdir)


def test_cut_and_skipped_conversations_are_described(run, tmp_path):
    config, workdir = make(run, tmp_path)
    *some, last = sums(60)
    system = dict(role='system', content=' '.join(map(str, range(50))))
    long = dict(id='long', messages=[system, *last['messages']])
    write_chat(workdir / 'own.jsonl', *some, long)
    shutil.rmtree(workdir / 'dialogue')
    config.data.context = 12
    manifest = build_dialogue(config, workdir)
    own = [manifest['splits'][split]['own'] for split in ('train', 'validation')]
    cut, kept = (sum(c[n] for c in own) for n in ('cut_tokens', 'predicted_tokens'))
    assert cut > 0
    description = describe_dialogue(manifest)
    assert (
        f'59 of 59 replies cut to fit data.context=12, which removes '
        f'{cut / (cut + kept):.0%} of the tokens of all replies' in description
    )
    assert DIALOGUE.details(manifest) == (
        'own: 60 conversations in the form messages\n'
        'a system message of more than half of data.context=12 left out 1 of 60 '
        'conversations of own'
    )
    assert manifest['sources']['own']['skipped'] == {LONG_SYSTEM: 1}
    page = write_report(workdir).read_text(encoding='utf-8')
    assert f'<td>{own[0]["cut_tokens"]:,}</td>' in page and LONG_SYSTEM in page

    every = [dict(one, messages=[system, *one['messages']]) for one in some]
    write_chat(workdir / 'own.jsonl', *every)
    shutil.rmtree(workdir / 'dialogue')
    with pytest.raises(UserError, match='data.context=12: the system message takes'):
        build_dialogue(config, workdir)


def make_with_template(tmp_path, made):
    """(config, tokenizer) of a run with a chat template of its own."""
    tokenizer, _ = make_tokenizer(tmp_path, made)
    (tmp_path / 'run').rename(tmp_path / 'tokenizer')
    config = common.base()
    path = write_chat(tmp_path / 'own.jsonl', *sums(60))
    config.dialogue = common.dialogue_section(own=common.source('chat', str(path)))
    config.chat.template = 'turns'
    config.data.update(context=128, validation_fraction=0.2)
    return config, tokenizer


def test_refused_conversations_are_skipped_and_counted(tmp_path, monkeypatch):
    config, _ = make_with_template(tmp_path, TEMPLATES['gemma_2'])
    system = dict(role='system', content='Be brief.')
    *some, first, last = sums(60)
    refused = [dict(one, messages=[system, *one['messages']]) for one in (first, last)]
    path = write_chat(tmp_path / 'own.jsonl', *some, *refused)
    manifest = build_dialogue(config, tmp_path)
    why = 'the chat template of the model refuses the messages: no system messages'
    assert manifest['sources']['own']['skipped'] == {why: 2}
    assert sum(split['own']['turns'] for split in manifest['splits'].values()) == 58
    kept = [
        view['messages']
        for split in ('train', 'validation')
        for view in storage.read_jsonl(tmp_path / 'dialogue' / f'{split}.jsonl')
    ]
    assert len(kept) == 58 and system not in sum(kept, [])
    assert len([*(tmp_path / 'dialogue').glob('*')]) == 5  # no draft is left
    assert DIALOGUE.details(manifest) == (
        'own: 60 conversations in the form messages\n'
        f'"{why}" left out 2 of 60 conversations of own'
    )

    write_chat(path, *(dict(o, messages=[system, *o['messages']]) for o in some))
    shutil.rmtree(tmp_path / 'dialogue')
    with pytest.raises(UserError, match=f'all .* of the split train .*{why}'):
        build_dialogue(config, tmp_path)
    monkeypatch.setattr(packed_conversations, 'FIRST_CONVERSATIONS', 20)
    with pytest.raises(UserError, match=f'the first 20 conver.* split train .*{why}'):
        build_dialogue(config, tmp_path)


@pytest.mark.parametrize('broken', ['{% for m in messages %}', '{{ 1 | unknown }}'])
def test_a_template_that_cannot_be_compiled_ends_the_build(tmp_path, broken):
    config, _ = make_with_template(tmp_path, Made(broken, ()))
    with pytest.raises(UserError, match='the chat template .* cannot be compiled: '):
        build_dialogue(config, tmp_path)


def test_a_conversation_is_counted_once(tmp_path):
    config, tokenizer = make_with_template(tmp_path, TEMPLATES['gemma_2'])
    system = dict(role='system', content=' '.join(map(str, range(50))))
    config.data.context = 12
    (messages,) = (one['messages'] for one in sums(1))
    for template, why in (('turns', 'no system messages'), ('text', LONG_SYSTEM)):
        config.chat.template = template
        writer = _SourceWriter(tmp_path / template, tokenizer, config)
        for identity in ('own/a@0', 'own/a@1', 'own/b@0'):
            kept = writer.add(identity, [system, *messages])
            assert kept == (template == 'text')
        ((reason, count),) = writer.left_out.items()
        assert why in reason and count == 2


def test_a_batch_shows_conversations(made):
    lines = list(ledger.describe_batch(*made, 2))
    assert any('  own/c' in line and 'from its start' in line for line in lines)
    assert any(line.strip().startswith('<|assistant|>') for line in lines)


def test_a_share_of_each_batch_is_pretraining_text(run, new_run, made):
    config, workdir = made
    config = config.copy_and_resolve_references()
    config.start = common.start_section(str(new_run(context=40).workdir))
    config.sft.pretraining_share = 0.25
    rows = open_training_dataset(config, workdir)
    names = [source.name for source in rows.sources]
    assert names == ['own', 'pretraining/a', 'pretraining/b']
    choice = rows.choose_training_rows(0, np.arange(400))
    is_text = choice.source > 0
    assert (is_text.reshape(100, 4).sum(axis=1) == 1).all()
    batch = rows.load(choice)
    assert batch['weights'][is_text].mean() > 0.9  # every token of text is trained on
    assert batch['weights'][~is_text].mean() < 0.6
    config.start.run, config.sft.pretraining_share = str(run.workdir), 0.5
    with pytest.raises(UserError, match='another context .16, here 40.*context=16'):
        open_training_dataset(config, workdir)
