"""The quality classifier: training, its figures, its errors, and the cleaning step."""

import itertools
import json
import random
import shutil
import sys

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import documents
from gptjax.data.quality import classifier_training
from gptjax.data.quality.classifier_training import (
    area_interval,
    build_classifier,
    measure_scores,
    wilson,
)
from gptjax.data.quality.quality_classifier import (
    FEATURES,
    read_classifier,
    score_text,
)
from tests import runs

pytest.importorskip('sklearn')
GOOD = 'the river ran past an old mill while children watched boats drift'.split()
BAD = 'buy cheap now click here free offer best deal watched boats the old'.split()


def write_texts(path, words, count, seed=0):
    draw = random.Random(seed)
    texts = [' '.join(draw.choices(words, k=draw.randint(5, 20))) for _ in range(count)]
    path.mkdir()
    lines = ''.join(json.dumps(dict(text=text)) + '\n' for text in texts)
    (path / 'texts.jsonl').write_text(lines)
    return path


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Folders of 60 good and 120 bad texts that share some words."""
    root = tmp_path_factory.mktemp('texts')
    return write_texts(root / 'good', GOOD, 60), write_texts(root / 'bad', BAD, 120)


@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory):
    run = tmp_path_factory.mktemp('run')
    build_classifier(*map(str, folders), run)
    return run


def test_a_classifier_of_two_folders(folders, trained):
    manifest = storage.read_json(trained / 'classifier' / 'manifest.json')
    assert manifest['texts'] == dict(good=60, bad=120)
    assert manifest['held_out'] == dict(good=12, bad=24)
    figures = manifest['figures']
    assert figures['this classifier']['auc']['value'] > 0.9
    assert figures['the larger class']['accuracy']['value'] == pytest.approx(2 / 3)
    assert figures['the larger class']['auc']['value'] == 0.5
    kept = [row['good_kept'] for row in manifest['thresholds']]
    assert kept == sorted(kept, reverse=True)
    weights, fingerprint = read_classifier(str(trained))
    assert weights.shape == (FEATURES + 1,) and weights.dtype == np.float32
    assert fingerprint == manifest['weights_sha256']
    assert read_classifier(str(trained / 'classifier')).fingerprint == fingerprint
    score = score_text('the river ran past the mill', weights)
    assert score > 0.5 > score_text('Buy CHEAP offer now!', weights)
    assert score == score_text('the river ran past the mill', weights)


def test_training_again_gives_the_same_weights(folders, trained, tmp_path):
    build_classifier(*map(str, folders), tmp_path)
    again = read_classifier(str(tmp_path))
    assert again.fingerprint == read_classifier(str(trained)).fingerprint


def test_files_of_other_kinds_give_the_same_texts(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f'{number}.txt').write_text(f'text {number}')
    reply = dict(role='assistant', content='Yes', train=False)
    messages = [dict(role='user', content='Hi'), reply]
    (tmp_path / 'chat.jsonl').write_text(json.dumps(dict(messages=messages)) + '\n')
    (tmp_path / 'own.jsonl').write_text('{"text": "own"}\n{"text": "text 1"}\n')
    files = classifier_training.list_files(
        str(tmp_path), classifier_training.ENDINGS, '--good'
    )
    read = lambda: classifier_training._read_texts('good', files, lambda amount: None)
    texts = read()
    found = sorted(text for text, _ in texts.values())
    assert found == ['Hi\n\nYes', 'own', 'text 0', 'text 1', 'text 2']
    # Of too many texts, those with the smallest hashes are read, in any order.
    monkeypatch.setattr(classifier_training, 'MAX_TEXTS', 3)
    files.reverse()
    assert [*sorted(read())] == sorted(texts)[:3]


def test_near_copies_do_not_help_on_held_out_texts(tmp_path):
    """Texts of the same random words: nothing distinguishes good from bad ones."""
    for seed, name in enumerate(('good', 'bad')):
        path = write_texts(tmp_path / name, GOOD + BAD, 60, seed) / 'texts.jsonl'
        texts = [line['text'] for line in storage.read_jsonl(path)]
        with open(path, 'w') as file:
            for n, text in itertools.product(range(1, 7), texts):
                file.write(json.dumps(dict(text=text.replace(' ', ' ' * n))) + '\n')
    manifest = build_classifier(
        str(tmp_path / 'good'), str(tmp_path / 'bad'), tmp_path / 'run'
    )
    assert manifest['texts'] == dict(good=60, bad=60)
    low, high = manifest['figures']['this classifier']['accuracy']['interval']
    assert low < 0.5 < high


def test_a_cut_file_is_not_split():
    split = lambda *files: classifier_training._split_texts(
        'good', {key: (f'{key}', file) for key, file in enumerate(files)}
    )
    held, others = split(*(['a.txt', 'b.txt'] * 4), *[''] * 22)
    assert held == ['0', '2', '4', '6', '8', '9'] and len(others) == 30 - len(held)
    with pytest.raises(UserError, match='--good: most texts are parts of one text f'):
        split(*['a.txt'] * 50)
    assert classifier_training._name_cut_file('own/a.txt#1.2') == 'own/a.txt'
    assert not classifier_training._name_cut_file('own/lines.jsonl#1')


def test_folders_that_cannot_be_used(folders, tmp_path, capsys):
    good, bad = folders

    def refuses(message, good, bad):
        run = tmp_path / 'run'
        words = ('classifier', f'--good={good}', f'--bad={bad}', f'--workdir={run}')
        assert runs.gptjax(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1
        assert message in error, error
        assert not run.exists()

    few = write_texts(tmp_path / 'few', BAD, 49)
    refuses('--bad: 49 different texts, and a classifier needs at least 50', good, few)
    refuses('are the same files', good, f'{good}/*.jsonl')
    copy = write_texts(tmp_path / 'copy', GOOD, 60)
    refuses('--good: 0 different texts, without the 60 that are in both', good, copy)
    refuses('no such file', good, tmp_path / 'none')
    (tmp_path / 'a.csv').write_text('x')
    refuses('its kind is unknown', tmp_path / 'a.csv', bad)
    (tmp_path / 'a.jsonl').write_text('{"body": "x"}\n')
    refuses("line 1 has no field 'text', it has 'body'", tmp_path / 'a.jsonl', bad)
    (tmp_path / 'a.jsonl').write_text('{"text": 1}\n')
    refuses("line 1: the field 'text' holds a int", tmp_path / 'a.jsonl', bad)
    (tmp_path / 'a.parquet').write_text('x')
    refuses('): give one\n', tmp_path / 'a.parquet', bad)


def test_a_classifier_that_is_missing_or_damaged(trained, tmp_path):
    with pytest.raises(UserError, match="data.quality_classifier is '', .*gptjax clas"):
        read_classifier('')
    with pytest.raises(UserError, match='none: no classifier is there'):
        read_classifier(str(tmp_path / 'none'))
    copy = runs.copy(trained, tmp_path / 'copy')
    (copy / 'classifier' / 'weights.npy').write_bytes(b'damaged')
    with pytest.raises(UserError, match='weights.npy is damaged: delete'):
        read_classifier(str(copy))


def test_figures_of_scores():
    scores = np.array([0.9, 0.6, 0.4, 0.4, 0.1])
    labels = np.array([True, True, True, False, False])
    figures = measure_scores(scores, labels)
    assert figures['accuracy']['value'] == 0.8
    assert figures['auc']['value'] == pytest.approx(5.5 / 6)  # one tie of six pairs
    for count, total in ((0, 10), (5, 10), (10, 10)):
        low, high = wilson(count, total)
        assert low <= count / total <= high
    # Wilson's formula at 10 of 10: 1 / (1 + z² / n)
    assert wilson(10, 10)[0] == pytest.approx(1 / (1 + 1.959964**2 / 10), rel=1e-5)
    assert area_interval(1.0, 20, 20)[0] < 0.95
    assert area_interval(0.8, 20, 20)[0] < area_interval(0.8, 2000, 2000)[0] < 0.8


def test_keep_quality_drops_what_scores_low(folders, trained, tmp_path, monkeypatch):
    config = common.base()
    config.data.sources = dict(
        own=common.source('jsonl', str(folders[0].parent / '*' / '*.jsonl'))
    )
    config.data.clean = ('drop_short', 'keep_quality')
    config.data.quality_classifier = str(trained)
    manifest = documents.build_documents(config, tmp_path / 'run')
    counts = manifest['sources']['own']
    assert 50 <= counts['kept']['documents'] <= 70
    assert counts['steps']['keep_quality']['documents_dropped'] >= 100
    settings, fingerprint = manifest['settings'], read_classifier(str(trained))[1]
    assert settings['data.quality_classifier'] == fingerprint
    assert 'data.min_quality=0.5 left out' in documents.describe_left_out(manifest)
    weights = read_classifier(str(trained)).weights
    for split in ('train', 'validation'):
        for line in storage.read_jsonl(tmp_path / 'run/documents' / f'{split}.jsonl'):
            assert score_text(line['text'], weights) >= 0.5

    # The same classifier elsewhere makes the same documents.
    config.data.quality_classifier = str(runs.copy(trained, tmp_path / 'copy'))
    assert documents.build_documents(config, tmp_path / 'run') == manifest
    # Finished documents need neither the classifier nor its library.
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    assert documents.build_documents(config, tmp_path / 'run') == manifest
    with pytest.raises(UserError, match='needs the package scikit-learn'):
        documents.build_documents(config, tmp_path / 'other')
    shutil.rmtree(tmp_path / 'copy')
    assert documents.build_documents(config, tmp_path / 'run') == manifest
    with pytest.raises(UserError, match='no classifier is there'):
        documents.build_documents(config, tmp_path / 'other')
    config.data.min_quality = 0.9
    with pytest.raises(UserError, match=r'data\.min_quality: 0\.5 there, 0\.9 here'):
        documents.build_documents(config, tmp_path / 'run')


def test_the_step_and_its_classifier_need_each_other(trained, tmp_path):
    config = common.base()
    config.data.sources = dict(none=common.source('text', str(tmp_path / 'none')))
    config.data.clean = ('keep_quality',)
    with pytest.raises(UserError, match="data.quality_classifier is ''"):
        documents.build_documents(config, tmp_path / 'run')
    config.data.quality_classifier = str(trained)
    config.data.clean = ('drop_short',)
    with pytest.raises(UserError, match="no source has the step 'keep_quality'"):
        documents.build_documents(config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'documents').exists()


def test_artifacts_without_the_step_have_no_setting_of_it(tmp_path):
    data = common.base().data
    data.quality_classifier = 'elsewhere'
    settings = documents.cleaning_settings(data) | documents.source_settings(
        'data.sources', data.sources, data, tmp_path
    )
    assert not [name for name in settings if 'quality' in name]
