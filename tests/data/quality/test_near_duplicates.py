"""Near duplicates: which pairs are found, and that nothing else decides it."""

import json
import random

import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.schema import DATA
from gptjax.data import documents
from gptjax.data.quality import near_duplicates
from gptjax.data.quality.near_duplicates import NearDuplicateIndex, shingles, sign

THRESHOLD = DATA['near_duplicate_similarity'].default


def make_text(random, num_words=200):
    return ' '.join(f'w{random.randrange(5000)}' for _ in range(num_words))


def edit(random, text, num_edits):
    words = text.split()
    for place in random.sample(range(len(words)), num_edits):
        words[place] = 'changed'
    return ' '.join(words)


def jaccard(one, other):
    one, other = shingles(one), shingles(other)
    return len(one & other) / len(one | other)


def test_pairs_above_the_threshold_match_and_pairs_below_do_not():
    """The margin is four standard deviations of the estimate, 4 sqrt(s (1 - s) / 256).

    A pair above it has an equal key with a probability of more than RECALL.
    """
    rng = random.Random(0)
    checked = set()
    for number in range(60):
        text = make_text(rng)
        other = edit(rng, text, number % 20)
        exact = jaccard(text, other)
        index = NearDuplicateIndex(THRESHOLD)
        assert index.add('first', sign(text)) is None
        found = index.add('second', sign(other))
        margin = 4 * (exact * (1 - exact) / near_duplicates.PERMUTATIONS) ** 0.5
        if abs(exact - THRESHOLD) > margin or exact == 1:
            assert (found is not None) == (exact >= THRESHOLD), exact
            checked.add(found is None)
        if found:
            assert found[0] == 'first' and abs(found[1] - exact) <= margin
    assert checked == {True, False}


@pytest.mark.parametrize('similarity', [0.3, 0.5, 0.8, 0.95, 1.0])
def test_rows_are_the_most_that_keep_the_recall(similarity):
    rows = near_duplicates.choose_rows(similarity)

    def recall(rows):
        bands = near_duplicates.PERMUTATIONS // rows
        return 1 - (1 - similarity**rows) ** bands

    assert recall(rows) >= near_duplicates.RECALL
    last = near_duplicates.PERMUTATIONS
    assert all(recall(n) < near_duplicates.RECALL for n in range(rows + 1, last + 1))


def test_groups_alone_decide_as_the_index_does():
    """As a distributed runner does it: map, group by key, take the earliest match."""
    rng = random.Random(1)
    texts = [make_text(rng, 60) for _ in range(6)]
    texts += [edit(rng, rng.choice(texts), rng.randrange(4)) for _ in range(24)]
    signed = [(f'{n:02}', sign(text)) for n, text in enumerate(texts)]
    index = NearDuplicateIndex(0.7)
    expected = {name: index.add(name, signature) for name, signature in signed}
    groups, matches = {}, {name: [] for name, _ in signed}
    for document in signed:
        keys = near_duplicates.band_keys(document[1], near_duplicates.choose_rows(0.7))
        for key in keys:
            groups.setdefault(key, []).append(document)
    for group in groups.values():
        for place, (name, signature) in enumerate(group):
            found = near_duplicates.find_match(signature, group[:place], 0.7)
            matches[name] += [found] if found else []
    assert {
        name: min(found, default=None) for name, found in matches.items()
    } == expected
    assert 0 < sum(found is not None for found in expected.values()) <= 24


@pytest.mark.parametrize('seed', range(4))
def test_the_first_of_all_earlier_documents_matches(seed):
    """In clusters of equal and similar texts, as if all signatures were kept."""
    rng = random.Random(seed)
    texts = [make_text(rng, 40) for _ in range(3)]
    texts += [edit(rng, rng.choice(texts), rng.randrange(4)) for _ in range(60)]
    texts += rng.choices(texts, k=60)
    rng.shuffle(texts)
    index, earlier, rows = NearDuplicateIndex(0.7), [], near_duplicates.choose_rows(0.7)
    for number, text in enumerate(texts):
        signature = sign(text)
        keys = {*near_duplicates.band_keys(signature, rows)}
        estimates = {
            n: float((other == signature).mean())
            for n, other, known in earlier
            if keys & known
        }
        expected = next(((n, s) for n, s in estimates.items() if s >= 0.7), None)
        assert index.add(number, signature) == expected
        earlier.append((number, signature, keys))
    signatures = {other.tobytes() for _, other, _ in earlier}
    assert len(index._documents) == len(signatures) < len(texts)


def test_no_more_is_read_than_is_compared():
    signature = sign('one')

    def earlier():
        yield 'first', signature
        raise AssertionError

    assert near_duplicates.find_match(signature, earlier(), 0.8) == ('first', 1.0)


def test_words_decide_in_any_script():
    assert jaccard("Don't STOP, all of you!", 'dont stop all of you') == 1
    assert jaccard('A cat, a mat—and a “bat”', 'a cat a mat – and a bat') == 1
    chinese = '今天天气很好我们去公园散步吧'
    assert 0.5 < jaccard(chinese, chinese[:-1]) < 1  # characters count as words
    assert not shingles('?!') & shingles('...')  # texts without words differ


@pytest.fixture
def config(tmp_path):
    rng = random.Random(2)
    texts = [make_text(rng, 150) for _ in range(12)]
    near = [edit(rng, text, 1) for text in texts[:4]]
    config = common.base()
    config.data.sources = {}
    for name, found in dict(first=texts, second=[*near, make_text(rng)]).items():
        path = tmp_path / f'{name}.jsonl'
        lines = [dict(id=f'{name[0]}{n}', text=text) for n, text in enumerate(found)]
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        config.data.sources[name] = common.source('jsonl', str(path))
    config.data.clean = ('normalize_whitespace', 'drop_near_duplicates', 'lowercase')
    return config


def test_across_sources_with_any_number_of_workers(config, tmp_path, monkeypatch):
    config.data.workers = 1
    manifest = documents.build_documents(config, tmp_path / 'one')
    removed = list(storage.read_jsonl(tmp_path / 'one/documents/removed.jsonl'))
    assert [(line['id'], line['match']) for line in removed] == [
        (f'second/s{n}', f'first/f{n}') for n in range(4)
    ]
    for line in removed:
        assert line['source'] == 'second' and line['step'] == 'drop_near_duplicates'
        assert line['similarity'] >= THRESHOLD and len(line['text']) == 200
    steps = {name: source['steps'] for name, source in manifest['sources'].items()}
    dropped = {
        n: s['drop_near_duplicates']['documents_dropped'] for n, s in steps.items()
    }
    assert dropped == dict(first=0, second=4)
    assert 'data.near_duplicate_similarity=0.8 left out 4 of 5 documents of second' in (
        documents.DOCUMENTS.details(manifest)
    )
    monkeypatch.setattr(documents, 'CHUNK_CHARACTERS', 700)
    monkeypatch.setattr(documents, 'CHUNKS_BEFORE_PROCESSES', 2)
    config.data.workers = 2
    assert documents.build_documents(config, tmp_path / 'two') == manifest
    one, two = (tmp_path / run / 'documents/removed.jsonl' for run in ('one', 'two'))
    assert one.read_bytes() == two.read_bytes()


def test_the_threshold_belongs_to_runs_that_use_it(config, tmp_path):
    config.data.clean = ('drop_duplicates',)
    manifest = documents.build_documents(config, tmp_path / 'run')
    assert 'data.near_duplicate_similarity' not in manifest['settings']
    assert not (tmp_path / 'run/documents/removed.jsonl').exists()
    config.data.near_duplicate_similarity = 0.5
    assert documents.build_documents(config, tmp_path / 'run') == manifest
