"""Scores the quality of a text with a classifier that a user trains from two folders.

    RUN/classifier/weights.npy    (FEATURES + 1,) float32: of hashed n-grams; the bias
    RUN/classifier/manifest.json  SHA-256 of the weights, and figures on held-out texts

    score = 1 / (1 + exp(-(x · w + b))),  0 as the bad texts … 1 as the good ones

x are the counts of hashed words and pairs of words, with |x| = 1 (logistic regression;
Weinberger et al. 2009 for the hashing). `classifier_training.py` trains it.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import storage
from gptjax.core.artifact import find_manifest
from gptjax.core.console import UserError

FEATURES = 2**18
CHARACTERS = 20_000  # of a text that are scored
ARTIFACT, WEIGHTS = 'classifier', 'weights.npy'
FINGERPRINT = 'data.quality_classifier'  # among the settings of an artifact
TRAIN = '`python -m gptjax classifier --good FOLDER --bad FOLDER --workdir RUN`'


class Classifier(NamedTuple):
    weights: np.ndarray  # (FEATURES + 1,) float32
    fingerprint: str  # SHA-256 of the file of weights


def keep_quality(text: str, options) -> str | None:
    """Drops text whose score by data.quality_classifier is below data.min_quality."""
    score = score_text(text, _load_weights(options.quality_classifier))
    return text if score >= options.min_quality else None


def score_text(text: str, weights: np.ndarray) -> float:
    """The quality of a text, 0 to 1. weights: (FEATURES + 1,), the last is the bias."""
    logit = (hash_ngrams([text]) @ weights[:-1])[0] + weights[-1]
    return float(1 / (1 + np.exp(-logit)))


def hash_ngrams(texts: list[str]):
    """Counts of hashed words, marks and pairs of these: sparse (texts, FEATURES)."""
    return _make_vectorizer().transform(text[:CHARACTERS] for text in texts)


@lru_cache
def _make_vectorizer():
    check_packages()
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=FEATURES,
        ngram_range=(1, 2),
        token_pattern=r'\w+|[^\w\s]',
        alternate_sign=False,
        dtype=np.float32,
    )


def check_packages() -> None:
    """Raises UserError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(
            'a quality classifier needs the package scikit-learn: pip install '
            "scikit-learn, or remove 'keep_quality' from data.clean"
        ) from error


def read_classifier(path: str) -> Classifier:
    """The classifier of data.quality_classifier, a run directory or its `classifier`.

    UserError if there is none, if it is damaged or if scikit-learn is not installed.
    """
    fingerprint = find_fingerprint(path)
    check_packages()
    return Classifier(np.load(find_weights(path), allow_pickle=False), fingerprint)


def find_fingerprint(path: str, folder: Path | None = None) -> str:
    """The SHA-256 of the weights of data.quality_classifier; needs no scikit-learn.

    If there are no weights, it is that of the manifest of `folder`, an artifact that
    is complete and so does not need them any more. UserError as `read_classifier`.
    """
    field = f'data.quality_classifier={path}'
    if not path:
        raise UserError(
            "data.quality_classifier is '', and the step 'keep_quality' needs one: "
            f'train one with {TRAIN} and give RUN, or remove the step'
        )
    file = find_weights(path)
    if folder and not file.exists():
        settings = (find_manifest(folder) or {}).get('settings', {})
        if FINGERPRINT in settings:
            return settings[FINGERPRINT]
    manifest = find_manifest(file.parent)
    if manifest is None:
        raise UserError(f'{field}: no classifier is there: train one with {TRAIN}')
    found = storage.sha256_of_file(file) if file.exists() else ''
    if found != manifest.get('weights_sha256'):
        raise UserError(
            f'{field}: {file} is damaged: delete {file.parent}, and train it again '
            f'with {TRAIN}'
        )
    return found


def find_weights(path: str) -> Path:
    """The file of weights of a run directory, or of the folder RUN/classifier."""
    folder = Path(path).expanduser()
    return (folder if (folder / WEIGHTS).exists() else folder / ARTIFACT) / WEIGHTS


def _load_weights(path: str) -> np.ndarray:
    file = find_weights(path)
    return _weights_at(path, file.stat().st_mtime_ns if file.exists() else 0)


@lru_cache(maxsize=4)
def _weights_at(path, modified):
    """A classifier that is trained again is read again, as `modified` is in the key."""
    return read_classifier(path).weights
