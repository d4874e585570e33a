"""Writing files so that nobody ever sees half of one, and hashing them."""

import errno
import hashlib
import json
import os
from pathlib import Path


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{os.getpid()}.draft')
    try:
        with open(draft, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode('utf-8'))


def write_json(path: Path | str, value) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path: Path | str):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def sha256_of_file(path: Path | str) -> str:
    """The hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def fingerprint(value) -> str:
    """The hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


# A place that cannot be written to, as the system says it; and as libraries say
# that have no OSError of it (TensorStore, TensorFlow, NumPy).
UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)
FULL = (
    *(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    'requested and',  # NumPy: '1048576 requested and 4096 written'
)


def unwritable(error: BaseException) -> str | None:
    """Why the place could not be written to, if that is what `error` comes from.

    As 'runs/a/metrics.jsonl: No space left on device'; the error's causes count.
    """
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            where = f'{error.filename}: ' if error.filename else ''
            return f'{where}{error.strerror}'
        for reason in FULL:
            if reason in str(error):
                return FULL[0] if reason == FULL[-1] else reason
        error = error.__cause__ or error.__context__
    return None
