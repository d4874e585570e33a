"""The labels of the made-up texts, and floors under what masking finds."""

import re

import pytest

from gptjax.bench import bench_masking
from gptjax.data.quality import personal_data
from gptjax.data.quality.personal_data import FORMS, MASKED, make_labelled_texts

# (recall, precision) as measured. Raise them if masking gets better.
FLOORS = {
    'development': dict(email=(1, 1), phone=(1, 1), handle=(1, 1), id=(0.97, 1)),
    'held out': dict(email=(0.8, 1), phone=(0.7, 1), handle=(0.71, 0.5), id=(0.54, 1)),
}


@pytest.mark.parametrize('split', personal_data.SPLITS)
def test_spans_hold_values_of_the_form(split):
    texts = list(make_labelled_texts(split, per_form=3))
    assert texts == list(make_labelled_texts(split, per_form=3))
    assert texts != list(make_labelled_texts(split, per_form=3, seed=1))
    assert len(texts) == 3 * sum(map(len, FORMS[split].values()))
    classes = {'?': r'\d', '%': '[2-9]', '~': '[0-9a-f]'}
    for one in texts:
        pattern = ''.join(
            classes.get(part) or (r'.+' if part[0] == '{' else re.escape(part))
            for part in re.findall(r'\{\w+\}|.', one.form)
        )
        assert re.fullmatch(pattern, one.text[one.start : one.end]), one


def test_held_out_forms_and_sentences_are_others():
    for table in (FORMS, personal_data.SENTENCES):
        groups = [set().union(*split.values()) for split in table.values()]
        assert not groups[0] & groups[1]


def test_masks_are_located():
    text = 'a b a 12 c'
    assert bench_masking.find_masks(text, 'a b a [phone] c') == [(6, 8, 'phone')]
    assert bench_masking.find_masks(text, 'a [id] a [phone] [email]') == [
        (2, 3, 'id'),
        (6, 8, 'phone'),
        (9, 10, 'email'),
    ]
    assert bench_masking.find_masks(text, text) == []


@pytest.mark.parametrize('split', personal_data.SPLITS)
def test_masking_finds_as_much_as_it_did(split):
    measured = bench_masking.measure_masking(make_labelled_texts(split, per_form=50))
    for kind, (recall, precision) in FLOORS[split].items():
        figures = measured['figures'][kind]
        assert figures['recall']['value'] >= recall, kind
        assert figures['precision']['value'] >= precision, kind
    for (kind, form), count in measured['forms'].items():
        if kind not in (*MASKED, 'code') and form != '@noon':
            assert count['kept'] == count['texts'], form
