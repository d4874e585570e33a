"""Conversations as pieces and rows: nothing trained twice, nothing lost uncounted."""

import json
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
from gptjax.data.packed_conversations import cut_conversation
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval.report import post_training_tables
from tests.data.test_conversations import sums, write_chat

BOS = 1


def turn(role, *said, prefix=(9,)):
    return Turn(list(prefix), list(said), role == 'assistant', role == 'system')


def pieces(room, *turns):
    """The pieces, in which '!' follows a token that is trained; and the counts."""
    counts = Counter()
    return [
        [f'{t}!' if trained else f'{t}' for t, trained in zip(*piece, strict=True)]
        for piece in cut_conversation(list(turns), BOS, room, counts)
    ], counts


def words(text):
    return text.split()


# ---- pieces


def test_a_short_conversation_is_one_piece():
    found, counts = pieces(8, turn('user', 20, 21), turn('assistant', 30, 2))
    assert found == [words('1 9 20 21 9 30! 2!')]
    assert counts == dict(pieces=1, turns=1)


def test_a_reply_stays_with_the_turn_that_it_answers():
    found, counts = pieces(
        9,
        turn('system', 5),
        turn('user', 20),
        turn('assistant', 30),
        turn('user', 21),
        turn('assistant', 31),
    )
    # The user's last turn would fit into the first piece, but not its reply.
    assert found == [
        words('1 9 5 9 20 9 30!'),
        words('1 9 5 9 21 9 31!'),
    ]
    assert counts == dict(pieces=2, turns=2)


def test_a_reply_after_a_reply_has_it_as_context_untrained():
    found, _ = pieces(7, *(turn('assistant', 30 + n, 40 + n) for n in range(3)))
    assert found == [
        words('1 9 30! 40! 9 31! 41!'),
        words('1 9 31 41 9 32! 42!'),
    ]


def test_a_reply_that_is_too_long_keeps_its_beginning_and_no_end():
    found, counts = pieces(13, turn('user', 20), turn('assistant', *range(30, 45), 2))
    (piece,) = found
    assert piece == words('1 9 20 9') + [f'{t}!' for t in range(30, 39)]
    assert counts == dict(pieces=1, turns=1, cut_turns=1, cut_tokens=7)


def test_a_turn_that_is_too_long_to_answer_keeps_its_end():
    found, counts = pieces(13, turn('user', *range(20, 60)), turn('assistant', 30, 2))
    assert found == [words('1 9') + [str(t) for t in range(52, 60)] + words('9 30! 2!')]
    assert counts == dict(pieces=1, turns=1, cut_prompts=1)


def test_what_has_no_reply_or_no_room():
    found, counts = pieces(6, turn('user', *range(20, 24)), turn('user', 24, 25, 26))
    assert found == [] and not counts
    found, counts = pieces(8, turn('system', *range(5)), turn('assistant', 30))
    assert found == [] and counts == dict(long_system=1)


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
        found = list(cut_conversation(turns, BOS, room, counts))
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
        # Only what was cut lacks its end.
        ends = {one.content[-1] for one in turns if one.trained}
        assert len(ends - set(trained)) == counts['cut_turns']


# ---- rows


@pytest.fixture(scope='module')
def made(run, tmp_path_factory):
    """(config, RUN) with the rows of sixty small conversations."""
    return make(run, tmp_path_factory.mktemp('dialogue'))


def make(run, workdir, template='turns', context=40):
    config = common.base()
    path = write_chat(workdir / 'own.jsonl', *sums(60))
    config.dialogue = common.dialogue_section(own=common.source('chat', str(path)))
    config.sft = common.sft_section()
    config.chat.template = template
    config.data.update(context=context, validation_fraction=0.2)
    config.train.batch_size = 4
    storage.write_bytes(
        workdir / 'tokenizer' / 'tokenizer.model',
        (run.workdir / 'tokenizer' / 'tokenizer.model').read_bytes(),
    )
    packed_conversations.build_dialogue(config, workdir)
    return config, workdir


@pytest.mark.parametrize('template', ('text', 'turns'))
def test_packed_conversations_are_the_conversations(run, template, tmp_path):
    config, workdir = make(run, tmp_path, template)
    tokenizer = run.tokenizer
    manifest = storage.read_json(workdir / 'dialogue' / 'manifest.json')
    for split in ('train', 'validation'):
        expected = Counter()
        size = 0
        with open(workdir / 'dialogue' / f'{split}.jsonl') as lines:
            for line in lines:
                messages = json.loads(line)['messages']
                tokens, trained = encode_conversation(messages, tokenizer, template)
                expected[tuple(tokens), tuple(trained)] += 1
                size += len(messages[1]['content'])
        packed = PackedDataset(workdir / 'dialogue', split)
        found, weights = Counter(), 0.0
        for batch in dataloader.validation_batches(packed, 4):
            weights += batch['weights'].sum()
            for row in range(4):
                for segment in range(1, batch['segments'][row].max() + 1):
                    here = batch['segments'][row] == segment
                    tokens = batch['inputs'][row][here].tolist()
                    # What is to be predicted is the next token of the same piece.
                    weighed = batch['weights'][row][here] > 0
                    targets = batch['targets'][row][here]
                    if weighed[-1]:  # its last token is only a target
                        tokens.append(int(targets[-1]))
                        weighed = np.append(weighed, False)
                    assert all(
                        not its or targets[n] == tokens[n + 1]
                        for n, its in enumerate(weighed[:-1])
                    )
                    trained = [False, *(weighed[:-1].tolist())]
                    assert batch['positions'][row][here][0] == 0
                    found[tuple(tokens), tuple(trained)] += 1
        assert found == expected
        counts = manifest['splits'][split]['own']
        assert weights == counts['predicted_tokens']
        assert counts['bytes'] == size
        assert counts['views'] == counts['pieces'] == counts['turns'] == sum(
            expected.values()
        )  # fmt: skip


def test_what_is_there_is_used_and_another_config_refused(run, made):
    config, workdir = made
    before = storage.read_json(workdir / 'dialogue' / 'manifest.json')
    assert packed_conversations.build_dialogue(config, workdir) == before
    other = config.copy_and_resolve_references()
    other.chat.template = 'text'
    with pytest.raises(UserError, match='chat.template: turns there, text here'):
        packed_conversations.build_dialogue(other, workdir)
    other = config.copy_and_resolve_references()
    other.data.validation_fraction = 1e-6
    storage.write_bytes(
        workdir / 'b' / 'tokenizer' / 'tokenizer.model',
        (workdir / 'tokenizer' / 'tokenizer.model').read_bytes(),
    )
    with pytest.raises(UserError, match='no conversation .* into validation'):
        packed_conversations.build_dialogue(other, workdir / 'b')
    assert not (workdir / 'b' / 'dialogue').exists()


def test_files_that_changed_since_are_noticed(run, tmp_path):
    config, workdir = make(run, tmp_path)
    write_chat(workdir / 'own.jsonl', *sums(61))
    with pytest.raises(UserError, match='dialogue.sources.own.path=.*now there are 1'):
        packed_conversations.build_dialogue(config, workdir)


def test_what_is_cut_or_left_out_is_told(run, tmp_path):
    config, workdir = make(run, tmp_path)
    *some, last = sums(60)
    system = dict(role='system', content=' '.join(map(str, range(50))))
    long = dict(id='long', messages=[system, *last['messages']])
    write_chat(workdir / 'own.jsonl', *some, long)
    shutil.rmtree(workdir / 'dialogue')
    config.data.context = 12
    description = packed_conversations.describe_dialogue(
        packed_conversations.build_dialogue(config, workdir)
    )
    counts = storage.read_json(workdir / 'dialogue' / 'manifest.json')
    own = [counts['splits'][split]['own'] for split in ('train', 'validation')]
    cut, kept = (sum(its[n] for its in own) for n in ('cut_tokens', 'predicted_tokens'))
    assert cut > 0
    assert (
        f'59 of 59 replies cut to fit data.context=12, which removes '
        f'{cut / (cut + kept):.0%} of the tokens of all replies' in description
    )
    assert '; 1 conversations skipped, as their system message' in description
    assert counts['sources']['own']['skipped'] == {packed_conversations.LONG_SYSTEM: 1}
    page = post_training_tables.dialogue_data_section(counts)
    assert (
        f'<td>{own[0]["cut_tokens"]:,}</td>' in page
        and packed_conversations.LONG_SYSTEM in page
    )

    every = [dict(its, messages=[system, *its['messages']]) for its in some]
    write_chat(workdir / 'own.jsonl', *every)
    shutil.rmtree(workdir / 'dialogue')
    with pytest.raises(UserError, match='data.context=12: the system message takes'):
        packed_conversations.build_dialogue(config, workdir)


def test_a_batch_names_its_conversations(made):
    config, workdir = made
    lines = list(ledger.describe_batch(config, workdir, 2))
    assert any('  own/c' in line and 'from its start' in line for line in lines)
    assert any(line.strip().startswith('<|assistant|>') for line in lines)


def test_a_share_of_each_batch_is_pretraining_text(run, new_run, made):
    config, workdir = made
    text = new_run(context=40)
    config = config.copy_and_resolve_references()
    config.start = common.start_section(str(text.workdir))
    config.sft.pretraining_share = 0.25
    rows = packed_conversations.open_training_dataset(config, workdir)
    names = [source.name for source in rows.sources]
    assert names == ['own', 'pretraining/a', 'pretraining/b']
    for step in range(20):
        choice = rows.choose_training_rows(0, 4 * step + np.arange(4))
        assert (choice.source > 0).sum() == 1
    batch = rows.load(rows.choose_training_rows(0, np.arange(400)))
    text_rows = rows.choose_training_rows(0, np.arange(400)).source > 0
    assert batch['weights'][text_rows].mean() > 0.9  # of text everything counts
    assert batch['weights'][~text_rows].mean() < 0.6
    config.start.run, config.sft.pretraining_share = str(run.workdir), 0.5
    with pytest.raises(UserError, match='another context .16, here 40.*context=16'):
        packed_conversations.open_training_dataset(config, workdir)
