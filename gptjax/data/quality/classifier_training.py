"""Trains the quality classifier: RUN/classifier from a folder of good and one of bad.

A fifth of the texts of each, those with the smallest hashes, is held out; the manifest
has the accuracy and the AUC on them, beside those of the larger class and of a
classifier that sees only the length, and what each threshold keeps.

Texts with equal words are one text, and the parts of a text file that was cut are all
held out or none. Otherwise held-out texts would repeat what was learned.
"""

import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np

from gptjax.core import artifact, console, run_dir, schema, storage
from gptjax.core.config import make_section
from gptjax.core.console import UserError
from gptjax.core.files import Advance, File, list_files, read_json_lines
from gptjax.core.hashing import hash_integer
from gptjax.data.chat_template import conversation_text
from gptjax.data.quality.quality_classifier import (
    ARTIFACT,
    CHARACTERS,
    FEATURES,
    WEIGHTS,
    check_packages,
    hash_ngrams,
)
from gptjax.data.quality.words import split_words
from gptjax.data.sources.file_source import read_messages
from gptjax.data.sources.open_source import (
    READERS,
    SUFFIXES,
    describe_files,
    refuse_changed_files,
)
from gptjax.data.sources.records import LicensedDocument

MIN_TEXTS = 50  # different ones in each folder
MAX_TEXTS = 100_000  # of each folder, those with the smallest hashes
MAX_CHARACTERS = 200_000_000
KEY_CHARACTERS = CHARACTERS // 2  # of the words by which texts are equal
HELD_OUT = 5  # one of so many
INVERSE_REGULARIZATION = 10.0
THRESHOLDS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
LEVEL = 0.95  # of intervals
ENDINGS = tuple({suffix: None for group in SUFFIXES.values() for suffix in group})


def build_classifier(good: str, bad: str, workdir: Path) -> dict:
    """Makes RUN/classifier; returns its manifest. `good`, `bad`: file, folder or glob.

    Raises UserError for folders that are the same, or have fewer than MIN_TEXTS texts.
    """
    check_packages()
    paths = dict(good=good, bad=bad)
    files = {n: list_files(path, ENDINGS, f'--{n}') for n, path in paths.items()}
    real = [[os.path.realpath(file.path) for file in group] for group in files.values()]
    if real[0] == real[1]:
        raise UserError(
            f'--good={good} and --bad={bad} are the same files: give texts of low '
            'quality as --bad'
        )

    def check(manifest, folder):
        for name, path in paths.items():
            described = dict(source=manifest['files'][name])
            refuse_changed_files(f'--{name}', path, ENDINGS, described, folder)

    return artifact.build(
        workdir / ARTIFACT,
        {f'--{name}': path for name, path in paths.items()},
        lambda folder: _train(files, folder),
        needs=[WEIGHTS],
        check=check,
    )


def _train(files: dict[str, list[File]], folder: Path) -> dict:
    size = sum(file.size for group in files.values() for file in group)
    with console.progress_bar('reading texts', size, 'bytes') as advance:
        texts = {n: _read_texts(n, group, advance) for n, group in files.items()}
    shared = {*texts['good']} & {*texts['bad']}
    for name, some in texts.items():
        texts[name] = {key: some[key] for key in some if key not in shared}
        if len(texts[name]) < MIN_TEXTS:
            why = f', without the {len(shared)} that are in both' if shared else ''
            raise UserError(
                f'--{name}: {len(texts[name])} different texts{why}, and a classifier '
                f'needs at least {MIN_TEXTS}: give more texts'
            )
    held, trained = [], []  # (text, whether it is good)
    for name, some in texts.items():
        parts = _split_texts(name, some)
        for part, examples in zip(parts, (held, trained), strict=True):
            examples += [(text, name == 'good') for text in part]
    with console.progress_bar('training the classifier', 0):
        fitted = _fit(_ngrams_of(trained), _labels_of(trained))
        length = _fit(_lengths_of(trained), _labels_of(trained))
    weights = np.float32([*fitted.coef_[0], *fitted.intercept_])
    np.save(folder / WEIGHTS, weights, allow_pickle=False)
    labels = _labels_of(held)
    scores = fitted.predict_proba(_ngrams_of(held))[:, 1]
    larger = len(texts['good']) >= len(texts['bad'])
    measured = partial(measure_scores, labels=labels)
    return dict(
        weights_sha256=storage.sha256_of_file(folder / WEIGHTS),
        features=FEATURES,
        characters=CHARACTERS,
        files={name: describe_files(group) for name, group in files.items()},
        texts={name: len(some) for name, some in texts.items()},
        in_both=len(shared),
        held_out={'good': int(labels.sum()), 'bad': int((~labels).sum())},
        figures={
            'this classifier': measured(scores),
            'length alone': measured(length.predict_proba(_lengths_of(held))[:, 1]),
            'the larger class': measured(np.full(len(labels), float(larger))),
        },
        thresholds=[
            dict(
                min_quality=threshold,
                good_kept=float(np.mean(scores[labels] >= threshold)),
                bad_kept=float(np.mean(scores[~labels] >= threshold)),
            )
            for threshold in THRESHOLDS
        ],
        packages=run_dir.package_versions(('scikit-learn', 'numpy')),
    )


# ---- texts


def _read_texts(
    name: str, files: list[File], advance: Advance
) -> dict[int, tuple[str, str]]:
    """The different texts of a folder: hash of the words → (text, file that was cut).

    They are the ones with the smallest hashes, at most MAX_TEXTS and MAX_CHARACTERS.
    """
    texts, largest, characters = {}, [], 0  # largest: a heap of -hash
    end = float('inf')  # the smallest hash that had no room
    for identity, text, _ in _read_all(f'--{name}', files, advance):
        text = text[:CHARACTERS]
        words = ' '.join(split_words(text))[:KEY_CHARACTERS] or text.strip()
        key = hash_integer(words)
        if not words or key in texts or key >= end:
            continue
        texts[key] = text, _name_cut_file(identity)
        characters += len(text)
        heapq.heappush(largest, -key)
        while len(texts) > MAX_TEXTS or characters > MAX_CHARACTERS:
            end = -heapq.heappop(largest)
            characters -= len(texts.pop(end)[0])
    return texts


def _name_cut_file(identity: str) -> str:
    """The text file of which a text is a part, or '': 'a/book.txt#3' → 'a/book.txt'"""
    name, _, _ = identity.rpartition('#')
    return name if name.endswith(SUFFIXES['text']) else ''


def _split_texts(
    name: str, texts: dict[int, tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """(held-out texts, others); a cut file is not split, and goes by its first hash."""
    groups = defaultdict(list)
    for key in sorted(texts):
        text, file = texts[key]
        groups[file or key].append(text)
    held, others = [], []
    for group in groups.values():
        fits = len(held) + len(group) <= len(texts) // HELD_OUT
        (held if fits else others).extend(group)
    if not held:
        raise UserError(
            f'--{name}: most texts are parts of one text file, which cannot be both '
            'learned and held out: give several files, or JSON Lines with a text a line'
        )
    return held, others


def _read_all(
    field: str, files: list[File], advance: Advance
) -> Iterator[LicensedDocument]:
    """The texts of files of any kind; JSON Lines with `messages` are conversations."""
    by_kind = {}
    for file in files:
        kind = next((k for k, ends in SUFFIXES.items() if file.name.endswith(ends)), '')
        if not kind:
            raise UserError(
                f'{field}={file.path}: its kind is unknown: use files that end in '
                f'{", ".join(ENDINGS)}'
            )
        if kind == 'jsonl':
            _, _, first = next(read_json_lines(file, field), (0, '', {}))
            kind = 'chat' if 'messages' in first and 'text' not in first else kind
        by_kind.setdefault(kind, []).append(file)
    for kind, group in by_kind.items():
        source = make_section(schema.SOURCE, kind=kind)
        try:
            yield from _READERS[kind](field, source, group, advance)
        except UserError as error:  # the readers name fields of a config
            raise UserError(_without_fields(str(error), field)) from error


def _read_conversations(field, source, files, advance):
    """As `read_chat`, also with replies that give no loss, which are text here."""
    for identity, _, messages, licence in read_messages(field, source, files, advance):
        text = conversation_text((m['role'], m['content']) for m in messages)
        yield identity, text, licence


_READERS = READERS | dict(chat=_read_conversations)


def _without_fields(message: str, field: str) -> str:
    """A reader's message for a command that has no field but the path."""
    message = message.replace(f'{field}.path', field)
    if f'set {field}.text_field' in message:
        message = message.split(': set ')[0] + ": write the text as 'text'"
    message = message.replace(f', or set {field}.kind', '')
    return message.replace(f'{field}.text_field=text', "the field 'text'")


# ---- training


def _fit(features, labels: np.ndarray):
    """Logistic regression in which both classes count the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=INVERSE_REGULARIZATION, class_weight='balanced', max_iter=1000
    )
    return model.fit(features, labels)


def _ngrams_of(examples):
    return hash_ngrams([text for text, _ in examples])


def _lengths_of(examples) -> np.ndarray:
    """(N, 2): the logarithm of the characters, and its square."""
    logs = np.log([len(text) for text, _ in examples])
    return np.stack([logs, logs**2 / 10], axis=1)


def _labels_of(examples) -> np.ndarray:
    return np.array([is_good for _, is_good in examples])


# ---- figures


def measure_scores(scores: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy at 0.5 and AUC, with intervals. scores: (N,) 0 to 1; labels: (N,) bool.

    The AUC is the share of pairs (good, bad) in which the good text has the higher
    score; a tie counts half.
    """
    right = int(np.sum((scores >= 0.5) == labels))
    good, bad = scores[labels], np.sort(scores[~labels])
    places = [np.searchsorted(bad, good, side) for side in ('left', 'right')]
    area = float(np.mean(places) / len(bad))
    return dict(
        accuracy=dict(value=right / len(labels), interval=wilson(right, len(labels))),
        auc=dict(value=area, interval=area_interval(area, len(good), len(bad))),
    )


def wilson(count: float, total: int) -> list[float]:
    """The score interval of a share (Wilson 1927); 0 to 1 of nothing."""
    if not total:
        return [0.0, 1.0]
    return _score_interval(count / total, lambda share: share * (1 - share) / total)


def area_interval(area: float, good: int, bad: int) -> list[float]:
    """The score interval of an AUC (Newcombe 2006, method 5); also sound at 1."""
    pairs, mean = good * bad, (good + bad) / 2 - 1

    def variance(a):
        spread = 1 + mean * ((1 - a) / (2 - a) + a / (1 + a))
        return a * (1 - a) * spread / pairs

    return _score_interval(area, variance)


def _score_interval(value: float, variance: Callable[[float], float]) -> list[float]:
    """The values v for which |value - v| <= z sqrt(variance(v)): both ends."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    ends = []
    for edge in (0.0, 1.0):
        inside, outside = value, edge
        for _ in range(50):  # bisection
            middle = (inside + outside) / 2
            if abs(value - middle) <= z * variance(middle) ** 0.5:
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    return ends


def describe_classifier(manifest: dict) -> tuple[str, list[tuple], list[tuple]]:
    """A line, the table of figures and the table of thresholds, headings first."""
    texts, held = manifest['texts'], manifest['held_out']
    line = (
        f'classifier: {texts["good"]:,} good and {texts["bad"]:,} bad texts, of which '
        f'{held["good"]:,} and {held["bad"]:,} are held out'
    )
    if manifest['in_both']:
        line += f'; {manifest["in_both"]:,} texts that are in both are left out'
    figures = [('on held-out texts', 'accuracy', '95%', 'AUC', '95%')]
    for name, figure in manifest['figures'].items():
        cells = []
        for one in (figure['accuracy'], figure['auc']):
            low, high = one['interval']
            cells += [f'{one["value"]:.3f}', f'{low:.3f} … {high:.3f}']
        figures.append((name, *cells))
    thresholds = [('data.min_quality', 'good kept', 'bad kept')]
    for row in manifest['thresholds']:
        kept = (f'{row[f"{name}_kept"]:.1%}' for name in ('good', 'bad'))
        thresholds.append((f'{row["min_quality"]:g}', *kept))
    return line, figures, thresholds
