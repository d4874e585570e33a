"""Documents as fixed-length examples without a token lost or predicted twice.

The documents of a source form one stream, `BOS doc BOS doc … BOS doc BOS`: BOS alone
delimits. It is cut into rows of T + 1 tokens that overlap by one, and only the last
row is padded. With T = 4 the documents `a b` and `c d e` are the stream
`BOS a b BOS c d e BOS`, the rows and what a row becomes when it is read:

    stored     BOS a b BOS c | c d e BOS PAD
    inputs     BOS a b BOS   | c d e   BOS
    targets    a   b EOS c   | d e EOS PAD
    weights    1   1 1   1   | 1 1 1   0
    segments   1   1 1   2   | 1 1 1   2
    positions  0   1 2   0   | 0 1 2   0

A BOS that follows a document stands for the document's end, EOS, as a target. So
every token and every end is a target exactly once. A row that begins within a
document (the second) goes on without what came before.
"""

import numpy as np


class Packer:
    """Cuts documents, one after another, into rows: `add` each, then `finish`.

    Args:
        context: T, the tokens of an example.
        pad: id of padding.
        bos: id of a document's start.
        dtype: of the rows, np.uint16 or np.uint32.

    Attributes:
        length: tokens of the stream so far, where the next document's BOS will be.
    """

    def __init__(self, context: int, pad: int, bos: int, dtype):
        self.length = 0
        self._context = context
        self._pad = pad
        self._bos = np.array([bos], dtype)
        self._rest = np.empty(0, dtype)  # begins with the last token of the last row

    def add(self, documents: list[np.ndarray]) -> np.ndarray:
        """The rows (n, T + 1) that these documents complete."""
        parts = [self._rest]
        for tokens in documents:
            parts += [self._bos, tokens.astype(self._rest.dtype)]
            self.length += 1 + len(tokens)
        return self._cut(np.concatenate(parts))

    def finish(self) -> np.ndarray:
        """The last row (1, T + 1), padded; (0, T + 1) if there is nothing left."""
        if not self.length:
            return self._cut(self._rest)
        self.length += 1
        rows = self._cut(np.concatenate([self._rest, self._bos]))
        if len(rows):
            return rows
        padding = self._context + 1 - len(self._rest)
        return np.pad(self._rest, (0, padding), constant_values=self._pad)[None]

    def _cut(self, stream: np.ndarray) -> np.ndarray:
        count = max(0, len(stream) - 1) // self._context
        self._rest = stream[count * self._context :].copy()
        return _windows(stream, count, self._context)


def _windows(stream: np.ndarray, count: int, context: int) -> np.ndarray:
    """`count` rows of context + 1 tokens that overlap by one."""
    begin = np.arange(count)[:, None] * context
    return stream[begin + np.arange(context + 1)]


def unpack(rows: np.ndarray, pad: int, bos: int, eos: int) -> dict[str, np.ndarray]:
    """What the model trains on, from stored rows; see the table above.

    Args:
        rows: (B, T + 1) unsigned integers.

    Returns:
        inputs, targets, segments, positions: (B, T) int32. Segments count from 1 and
            are 0 on padding; positions count from 0 in each segment.
        weights: (B, T) float32, 1 where there is something to predict, else 0.
    """
    inputs_BT, next_BT = rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)
    weights_BT = (inputs_BT != pad) & (next_BT != pad)
    starts_BT = inputs_BT == bos
    starts_BT[:, 0] = True
    place_T = np.arange(inputs_BT.shape[1], dtype=np.int32)
    start_BT = np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
    segments_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
    return {
        'inputs': inputs_BT,
        'targets': np.where(next_BT == bos, np.int32(eos), next_BT),
        'segments': np.where(inputs_BT == pad, np.int32(0), segments_BT),
        'positions': place_T - start_BT,
        'weights': weights_BT.astype(np.float32),
    }
