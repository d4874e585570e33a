"""Augmented rows: functions of (seed, source, epoch, row), with right labels."""

import shutil

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import dataloader
from gptjax.data.augmentation.augmentations import (
    AUGMENTATIONS,
    TOKEN_NOISE,
    check_augmentations,
    refuse_augmentations,
)
from gptjax.data.augmentation.augmented_dataset import (
    augment_dataset,
    decode_whole_characters,
)
from gptjax.data.packed_conversations import open_training_dataset
from gptjax.data.packed_dataset import PackedDataset, RowChoice, mix_datasets
from gptjax.data.packed_documents import build_packed_documents
from gptjax.tokenizer.import_tokenizer import import_tokenizer
from gptjax.tokenizer.tokenizer import FILL_IN_THE_MIDDLE
from tests.data import test_packed_conversations
from tests.data.conftest import make_run
from tests.tokenizer import made_tokenizers

WORDS = 'The cat sat. On a mat, and ran! Was it? Été 日本。 été, big dog. ▁'.split()
MIDDLE = 'fill_in_the_middle'
TEXT_LEVEL = [name for name in AUGMENTATIONS if name not in TOKEN_NOISE]
IN_DIALOGUE = [name for name in AUGMENTATIONS if name != MIDDLE]
RATES = dict(
    token_dropout='token_dropout_rate',
    token_masking='token_masking_rate',
    subword_regularisation='subword_alpha',
    character_noise='typo_rate',
    reorder_words='reorder_distance',
    shuffle_sentences='shuffle_rate',
    rotate_document='rotation_rate',
    delete_spans='deletion_rate',
    replace_synonyms='synonym_rate',
    fill_in_the_middle='fim_rate',
)


def write_run(folder, kind='bpe'):
    storage.write_text(folder / 'synonyms.tsv', 'big\tlarge\thuge\ndog\tpuppy\n')
    return make_run(folder, context=96, words=WORDS, kind=kind, augment=(MIDDLE,))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('texts'))


def configure(workdir, *names, config=None, **fields):
    config = config or common.base()
    config = config.copy_and_resolve_references()
    if 'replace_synonyms' in names:
        fields['synonyms'] = str(workdir / 'synonyms.tsv')
    config.data.update(augment=names, typo_rate=0.2, synonym_rate=1.0, **fields)
    return config


def augment(run, *names, seed=0, **fields):
    config = configure(run.workdir, *names, **fields)
    config.seed = seed
    return augment_dataset(PackedDataset(run.prepared, 'train'), config, run.tokenizer)


def load(dataset, seed=0, slots=range(24)):
    return dataset.load(dataset.choose_training_rows(seed, np.array(slots)))


def whole_rows(batch):
    """The T + 1 tokens of each row."""
    return [
        [*row, targets[-1]]
        for row, targets in zip(
            batch['inputs'].tolist(), batch['targets'].tolist(), strict=True
        )
    ]


def equal(batch, other):
    return all(np.array_equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_a_row_depends_on_seed_and_step(run, name):
    dataset = augment(run, name)
    whole = load(dataset)
    for slots in (range(5, 9), [23], [3, 1]):  # as another host or batch size loads
        part = load(dataset, slots=slots)
        assert equal(part, {key: array[slots] for key, array in whole.items()})
    batches = dataloader.training_batches(dataset, 0, 6, start_step=2, num_steps=2)
    rows = {key: array[12:].reshape(2, 6, -1) for key, array in whole.items()}
    for number, batch in enumerate(batches):
        assert equal(batch, {key: array[number] for key, array in rows.items()})
    plain = load(PackedDataset(run.prepared, 'train'))
    assert not equal(whole, plain)
    same_rows = dataset.choose_training_rows(0, np.arange(24))
    assert not equal(whole, augment(run, name, seed=1).load(same_rows))
    later = RowChoice(same_rows.source, same_rows.epoch + 1, same_rows.row)
    assert not equal(whole, dataset.load(later))


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_a_rate_of_zero_changes_nothing(run, name):
    config = configure(run.workdir, name)
    config.data[RATES[name]] = 0
    packed = PackedDataset(run.prepared, 'train')
    dataset = augment_dataset(packed, config, run.tokenizer)
    assert dataset is not packed and equal(load(dataset), load(packed))
    config.data.augment = ()
    assert augment_dataset(packed, config, run.tokenizer) is packed


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_labels_are_those_of_the_text(run, name):
    plain, batch = load(PackedDataset(run.prepared, 'train')), load(augment(run, name))
    specials = run.tokenizer.specials
    if name in TOKEN_NOISE:
        for field in ('targets', 'weights', 'segments', 'positions'):
            np.testing.assert_array_equal(batch[field], plain[field])
        fixed = np.isin(plain['inputs'], [*specials.values()])
        changed = batch['inputs'] != plain['inputs']
        assert not changed[fixed].any() and 0 < changed.mean() < 0.3
        return
    within = batch['segments'][:, 1:] == batch['segments'][:, :-1]
    within &= batch['weights'][:, 1:] > 0
    assert within.any()
    assert (batch['targets'][:, :-1] == batch['inputs'][:, 1:])[within].all()
    padding = batch['inputs'] == specials['<pad>']
    assert not (batch['weights'] * padding).any()
    assert not (batch['segments'] * padding).any()
    begins = batch['inputs'] == specials['<bos>']
    assert not batch['positions'][begins].any()
    # No document begins that did not; one may begin earlier, as a last input.
    last = (plain['targets'][:, -1] == specials['<eos>']).sum()
    assert begins.sum() <= (plain['inputs'] == specials['<bos>']).sum() + last


def test_all_together_and_in_any_order(run):
    names = [*AUGMENTATIONS]
    dataset = augment(run, *names)
    assert equal(load(dataset), load(augment(run, *names)))
    assert not equal(load(dataset), load(augment(run, *names[::-1])))


@pytest.mark.parametrize('kind', ('bpe', 'unigram'))
def test_subwords_are_those_of_the_text(kind, tmp_path):
    run = write_run(tmp_path, kind)
    t = run.tokenizer
    plain = load(PackedDataset(run.prepared, 'train'))
    batch = load(augment(run, 'subword_regularisation', subword_alpha=0.3))
    assert batch['inputs'].shape == plain['inputs'].shape
    lost = 0
    for new, old in zip(whole_rows(batch), whole_rows(plain), strict=True):
        new, old = (b''.join(map(t.bytes_of, row)) for row in (new, old))
        assert new in old or old.startswith(new) or old.endswith(new)
        lost += len(old) - len(new)
    assert lost > 0  # other segmentations are longer


def test_middle_after_the_end(run):
    """Each changed text is the three parts of the text."""
    t, size = run.tokenizer, 0
    pre, mid, suf = (t.specials[name] for name in FILL_IN_THE_MIDDLE)
    plain = load(PackedDataset(run.prepared, 'train'))['inputs'].tolist()
    batch = load(augment(run, MIDDLE, fim_rate=1.0))
    kinds = set()
    rows = batch['inputs'].tolist()
    for row, old, weights in zip(rows, plain, batch['weights'], strict=True):
        places = [n for n, token in enumerate(row) if token == pre]
        for start, end in zip(places, places[1:], strict=False):
            part = row[start + 1 : end - 1]  # without the BOS of the next one
            first, second = part.index(suf), part.index(mid)
            suffix, rest = part[first + 1 : second], part[second + 1 :]
            kinds.add('PSM' if first else 'SPM')
            # In both, what follows <|fim_middle|> ends where the suffix begins.
            whole = t.decode(part[:first]) + t.decode(rest) + t.decode(suffix)
            assert whole in t.decode(old)
            assert weights[start : end - 1].all()
            size += 1
    assert size > 5 and kinds == {'PSM', 'SPM'}


# ---- dialogue


def chats(count):
    for n in range(count):
        question = dict(role='user', content=f'The cat. {n} dogs? On a mat.')
        answer = dict(role='assistant', content=f'The {n} big dogs ran! On it?')
        more = dict(role='user', content='Was it?')
        yield dict(id=f'c{n}', messages=[question, answer, more, answer][: 2 + n % 3])


@pytest.fixture(scope='module', params=('text', 'turns'))
def dialogue(request, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('dialogue')
    storage.write_text(folder / 'synonyms.tsv', 'the\ta\ndogs\tcats\n')
    made = test_packed_conversations.make(run, folder, request.param, 96, [*chats(40)])
    return made, run.tokenizer


@pytest.mark.parametrize('name', IN_DIALOGUE)
def test_replies_stay_unless_asked(dialogue, name):
    (config, workdir), tokenizer = dialogue
    packed = open_training_dataset(config, workdir)
    config = configure(workdir, name, config=config)
    batches = {}
    for replies in (False, True):
        config.data.augment_replies = replies
        batches[replies] = load(augment_dataset(packed, config, tokenizer))
    plain = load(packed)
    batch = batches[False]
    assert not equal(batch, plain)
    for n in range(len(batch['inputs'])):
        was, now = plain['weights'][n] > 0, batch['weights'][n] > 0
        np.testing.assert_array_equal(
            plain['targets'][n][was], batch['targets'][n][now]
        )
        assert plain['segments'][n].max() == batch['segments'][n].max()
    marks = [id for name, id in tokenizer.specials.items() if name != '<pad>']
    for row, old in zip(whole_rows(batch), whole_rows(plain), strict=True):
        kept = [[t for t in tokens if t in marks] for tokens in (row, old)]
        assert kept[0] == kept[1]
        ends = [tokenizer.decode(tokens).count('\n\n') for tokens in (row, old)]
        assert ends[0] == ends[1]
    assert not equal(batches[True], batch)


@pytest.mark.parametrize('name', ('delete_spans', 'character_noise'))
def test_turns_of_several_lines_get_no_empty_line(name, run, tmp_path):
    """An empty line ends a turn of the template 'text'."""
    user = dict(role='user', content='a\nI like cats\nb\nand dogs\nc')
    messages = [user, dict(role='assistant', content='d\ne'), dict(user, content='f')]
    chats = [dict(id=f'c{n}', messages=[*messages, messages[1]]) for n in range(20)]
    config, workdir = test_packed_conversations.make(run, tmp_path, 'text', 96, chats)
    packed = open_training_dataset(config, workdir)
    config = configure(workdir, name, config=config, augment_replies=True)
    config.data.update(typo_rate=0.8, deletion_rate=0.5)
    batch, plain = load(augment_dataset(packed, config, run.tokenizer)), load(packed)
    assert not equal(batch, plain)
    for row, old in zip(whole_rows(batch), whole_rows(plain), strict=True):
        turns, old_turns = (
            run.tokenizer.decode(tokens).split('\n\n')[:-1] for tokens in (row, old)
        )
        assert len(turns) == len(old_turns)
        assert all(line for turn in turns for line in turn.split('\n'))


def test_text_mixed_into_conversations_stays(dialogue, run):
    (config, workdir), tokenizer = dialogue
    text = PackedDataset(run.prepared, 'train')
    packed = mix_datasets(open_training_dataset(config, workdir), text, 0.5)
    config = configure(workdir, *IN_DIALOGUE, config=config)
    batch = load(augment_dataset(packed, config, tokenizer))
    plain = load(packed)
    is_text = packed.choose_training_rows(0, np.arange(24)).source > 0
    changed = (batch['inputs'] != plain['inputs']).any(axis=1)
    assert (
        is_text.sum() == 12 and changed[~is_text].all() and not changed[is_text].any()
    )


# ---- borders, imported tokenizers, errors


@pytest.mark.parametrize('make', made_tokenizers.KINDS, ids=lambda make: make.__name__)
def test_imported_tokenizers(make, tmp_path):
    run = write_run(tmp_path)
    for name in ('tokenizer', 'prepared'):
        shutil.rmtree(tmp_path / name)
    specials = [
        *made_tokenizers.SPECIALS,
        '<fim_prefix>',
        '<fim_middle>',
        '<fim_suffix>',
    ]
    size = made_tokenizers.write_folder(tmp_path / 'hf', make(specials))
    tokenizer = import_tokenizer(tmp_path / 'hf', tmp_path / 'tokenizer', size)
    build_packed_documents(run.config, tmp_path)
    packed = PackedDataset(run.prepared, 'train')
    plain = load(packed)['inputs']
    for name in ('reorder_words', MIDDLE):
        config = configure(tmp_path, name, fim_rate=1.0)
        batch = load(augment_dataset(packed, config, tokenizer))
        changed = (batch['inputs'] != plain).any(axis=1)
        assert changed.mean() > 0.8
        assert not (batch['weights'] * (batch['inputs'] == tokenizer.pad_id)).any()
    suffixes = batch['inputs'] == tokenizer.specials['<fim_suffix>']
    assert suffixes.any(axis=1)[changed].mean() > 0.8
    config = configure(tmp_path, 'subword_regularisation')
    with pytest.raises(UserError, match='and this one is imported: leave it out'):
        augment_dataset(packed, config, tokenizer)


def test_borders_within_a_character():
    content = [b'\xa9', b'a', b' \xc3', b'\xa9', b'\xe6', b'\x97']
    tokens = range(len(content))
    assert decode_whole_characters(tokens, content.__getitem__) == (1, 4, 'a é')
    assert decode_whole_characters([0, 5], content.__getitem__) is None
    assert decode_whole_characters([1, 4, 1, 1, 1, 1, 1], content.__getitem__) is None


def test_errors(run, tmp_path):
    def refused(message, *names, dialogue=False, **fields):
        config = common.base()
        config.data.update(augment=names, **fields)
        with pytest.raises(UserError, match=message):
            check_augmentations(config.data, dialogue)

    refused("no augmentation is called 'typos': use subword_regularisation, ", 'typos')
    refused("'token_dropout' occurs twice", 'token_dropout', 'token_dropout')
    refused('for documents, not for conversations', MIDDLE, dialogue=True)
    refused("data.synonyms='' and data.augment has", 'replace_synonyms')
    path = tmp_path / 'table.tsv'
    for content, message in (
        ('big\tlarge\nsmall\n', 'line 2 has no word, no synonym'),
        ('big\t\t\n', 'line 1 has no word'),
        ('\n', 'no line has a word'),
    ):
        path.write_text(content)
        refused(message, 'replace_synonyms', synonyms=str(path))
    path = tmp_path / 'table.jsonl'
    path.write_text('{"word": "big", "synonyms": "large"}')
    refused('line 1 has no "word" with a list', 'replace_synonyms', synonyms=str(path))
    refused('no such file', 'replace_synonyms', synonyms=str(tmp_path / 'none'))
    config = common.base()
    config.data.augment = ('token_dropout',)
    with pytest.raises(UserError, match='only `pretrain` and `sft` augment'):
        refuse_augmentations(config.data)


def test_a_tokenizer_without_the_three_tokens(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match='this tokenizer has none: train the tokenizer'):
        augment(run, MIDDLE)
