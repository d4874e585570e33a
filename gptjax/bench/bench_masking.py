"""`bench masking`: recall and precision of the masking steps on made-up texts.

A value counts as found if all of its letters and digits are masked, by whichever step.
A mask counts as right if it lies within a value to be masked. personal_data.py makes
the texts. As a value of one form is found always or hardly ever, the intervals are
those of as many draws as there are forms.
"""

import re
from collections.abc import Iterable

from gptjax.data.cleaning import masking
from gptjax.data.quality.classifier_training import wilson
from gptjax.data.quality.personal_data import (
    MASKED,
    SPLITS,
    Labelled,
    make_labelled_texts,
)
from gptjax.eval.report.tables import print_table

PER_FORM = 50  # texts
STEPS = (
    *(masking.mask_emails, masking.mask_phone_numbers),
    *(masking.mask_handles, masking.mask_user_ids),
)
MASK = re.compile(r'\[(email|phone|handle|id)\]')


def run() -> dict:
    """Measures both splits; prints and returns the figures of each."""
    results = {}
    for split in SPLITS:
        print(f'{split}:\n')
        results[split] = measure_masking(make_labelled_texts(split, PER_FORM))
        _print_figures(results[split])
    return results


def mask_all(text: str) -> str:
    """The text after the masking steps of data.clean, in their default order."""
    for step in STEPS:
        text = step(text, None)
    return text


def find_masks(text: str, masked: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) in `text` of what became '[kind]' in `masked`."""
    parts = MASK.split(masked)  # text, kind, text, kind, …, text
    pattern = '(.+?)'.join(map(re.escape, parts[::2]))
    match = re.fullmatch(pattern, text, re.DOTALL)
    return [(*match.span(n + 1), kind) for n, kind in enumerate(parts[1::2])]


def measure_masking(texts: Iterable[Labelled]) -> dict:
    """{'figures': {kind: …}, 'forms': {(kind, form): counts}} of labelled texts.

    Counts of a form: `texts`; `found`, those whose value is masked; `kept`, those
    without a mask; 'email masks' and 'email right', the masks and the right ones, …
    """
    forms = {}
    for one in texts:
        masks = find_masks(one.text, mask_all(one.text))
        personal = one.kind in MASKED
        count = forms.setdefault((one.kind, one.form), dict(texts=0, found=0))
        count['texts'] += 1
        count['found'] += _is_masked(one, masks)
        count['kept'] = count.get('kept', 0) + (not masks)
        for start, end, kind in masks:
            right = personal and one.start <= start and end <= one.end
            for name, amount in ((f'{kind} masks', 1), (f'{kind} right', right)):
                count[name] = count.get(name, 0) + amount
    return dict(forms=forms, figures={kind: _figures(kind, forms) for kind in MASKED})


def _is_masked(one: Labelled, masks: list[tuple[int, int, str]]) -> bool:
    return all(
        any(start <= place < end for start, end, _ in masks)
        for place in range(one.start, one.end)
        if one.text[place].isalnum()
    )


def _figures(kind: str, forms: dict) -> dict:
    """Recall and precision of a kind with intervals, and their counts."""
    own = [count for (name, _), count in forms.items() if name == kind]
    masks = [count for count in forms.values() if f'{kind} masks' in count]
    return dict(
        texts=sum(count['texts'] for count in own),
        recall=_make_figure(own, 'found', 'texts'),
        masks=sum(count[f'{kind} masks'] for count in masks),
        precision=_make_figure(masks, f'{kind} right', f'{kind} masks'),
    )


def _make_figure(counts: list[dict], part: str, whole: str) -> dict:
    """{value, interval} of a share: as of so many draws as there are forms."""
    share = sum(one[part] for one in counts) / max(1, sum(one[whole] for one in counts))
    return dict(value=share, interval=wilson(share * len(counts), len(counts)))


def _print_figures(result: dict) -> None:
    rows = [('kind', 'texts', 'recall', '95%', 'masks', 'precision', '95%')]
    for kind, figures in result['figures'].items():
        row = [kind]
        for count, name in (('texts', 'recall'), ('masks', 'precision')):
            low, high = figures[name]['interval']
            row += [f'{figures[count]:,}', f'{figures[name]["value"]:.3f}']
            row.append(f'{low:.2f} … {high:.2f}')
        rows.append(tuple(row))
    print_table(rows, right_aligned=range(1, 7))
    print()
    rows = [('look-alikes', 'texts', 'left alone')]
    kept = {}
    for (kind, _), count in result['forms'].items():
        if kind not in MASKED:
            total = kept.setdefault(kind, [0, 0])
            total[0] += count['texts']
            total[1] += count['kept']
    rows += [(kind, f'{n:,}', f'{k / n:.3f}') for kind, (n, k) in kept.items()]
    print_table(rows, right_aligned=(1, 2))
    print('\nforms that are missed, or masked by mistake:')
    for (kind, form), count in result['forms'].items():
        right = count['found'] if kind in MASKED else count['kept']
        if right < count['texts']:
            print(f'  {kind:8} {form:32} {right} of {count["texts"]} right')
    print()
