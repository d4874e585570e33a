"""Training rows that are changed anew in every epoch, by `data.augment`.

A row is changed when it is loaded. The pieces of text between special tokens are
decoded, changed and encoded again, and the row is packed anew:

    stored   BOS a b c BOS d e     →  BOS a' b' b'' c' BOS d' e'

A row that has become shorter is padded. A row of text that has become longer loses its
end or, as often, its beginning, so that no place is lost in every epoch. In a row of a
conversation a piece that does not fit is left as it was. Targets, positions, segments
and weights are those of the new row; noise of tokens then changes only its inputs.
"""

import numpy as np
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.data.augmentation.augmentations import (
    MIDDLE,
    SUBWORDS,
    TEXT_CHANGES,
    TOKEN_NOISE,
    read_options,
)
from gptjax.data.augmentation.fill_in_the_middle import (
    fill_in_the_middle,
    find_sentinels,
)
from gptjax.data.augmentation.random_draws import Draws
from gptjax.data.augmentation.subword_sampling import SubwordSampler
from gptjax.data.augmentation.token_noise import replace_tokens
from gptjax.data.chat_template import TURN_END, uses_jinja
from gptjax.data.packed_dataset import PackedDataset, RowChoice
from gptjax.tokenizer.load_tokenizer import AnyTokenizer


def augment_dataset(
    dataset: PackedDataset, config: ConfigDict, tokenizer: AnyTokenizer
) -> PackedDataset:
    """The dataset itself if `data.augment` is empty, else an augmented one."""
    if not config.data.augment:
        return dataset
    return AugmentedDataset(dataset, config, tokenizer)


class AugmentedDataset(PackedDataset):
    """A dataset whose `load` changes rows; see `PackedDataset` for the rest.

    The changes of a row depend on (seed, source, epoch, row) and the name of each
    augmentation. Of conversations, only what is not trained on is changed, unless
    `data.augment_replies`. Pretraining text that is mixed into them stays as it is.
    """

    def __init__(self, dataset: PackedDataset, config: ConfigDict, tokenizer):
        vars(self).update(vars(dataset))
        data = config.data
        self._names, self._seed, self._data = tuple(data.augment), config.seed, data
        self._options, self._tokenizer = read_options(data), tokenizer
        self._is_dialogue = any(source.masked for source in self.sources)
        if self._is_dialogue and uses_jinja(tokenizer, config.chat.template):
            raise UserError(
                f'data.augment={", ".join(self._names)}: the chat template of this '
                'imported model writes its marks as text, which augmentations would '
                'change too: use data.augment=()'
            )
        self._sampler = self._sentinels = None
        if SUBWORDS in self._names and data.subword_alpha:
            self._sampler = SubwordSampler(tokenizer, data.subword_alpha)
        if MIDDLE in self._names:
            self._sentinels = find_sentinels(tokenizer)
        self._changes_text = not {*self._names} <= {*TOKEN_NOISE}
        # The template 'text' ends turns by empty lines, which have to stay.
        text_turns = self._is_dialogue and config.chat.template == 'text'
        self._turn_end = TURN_END if text_turns else None
        self._fixed = np.zeros(tokenizer.vocab_size, bool)  # tokens that never change
        self._fixed[[*tokenizer.specials.values(), *self.specials.values()]] = True
        self._fixed[[*(self._sentinels or ())]] = True
        self._fixed_noise = self._fixed.copy()
        if text_turns:
            size, end = tokenizer.vocab_size, b'\n'
            self._fixed_noise |= [end in tokenizer.bytes_of(t) for t in range(size)]

    def load(self, choice: RowChoice) -> dict[str, np.ndarray]:
        rows, trained, begins = self.read(choice)
        keys = [None] * len(rows)  # of the random numbers; None: the row stays
        for n, (index, epoch, row) in enumerate(
            zip(choice.source, choice.epoch, choice.row, strict=True)
        ):
            source = self.sources[index]
            if index < 0 or source.masked != self._is_dialogue:
                continue
            keys[n] = self._seed, source.name, epoch, row
            if self._changes_text:
                arrays = self._change_row(rows[n], trained[n], begins[n], keys[n])
                rows[n], trained[n], begins[n] = arrays
        batch = self.unpack(rows, trained, begins)
        for name in self._names:
            if name not in TOKEN_NOISE:
                continue
            for n, key in enumerate(keys):
                if key is not None:
                    batch['inputs'][n] = self._add_noise(
                        name,
                        rows[n],
                        trained[n],
                        batch['inputs'][n],
                        choice.source[n],
                        key,
                    )
        return batch

    def _is_changeable(self, row, trained, fixed) -> np.ndarray:
        changeable = ~fixed[row]
        if self._is_dialogue and not self._data.augment_replies:
            changeable &= ~trained
        return changeable

    def _add_noise(self, name, row, trained, inputs_T, source, key) -> np.ndarray:
        """`inputs_T` with tokens replaced; `row` and `trained` are (T + 1,)."""
        draws = Draws(*key, name)
        changeable = self._is_changeable(row, trained, self._fixed_noise)[:-1]
        others = np.full(self.context, self.specials['<pad>'])  # no text has this token
        if name == 'token_dropout':
            source = self.sources[source]
            place = np.array([draws.below(source.num_rows)])
            others = source.read(place)[0, :-1]
            changeable &= ~self._fixed_noise[others]
        rate = self._data[TOKEN_NOISE[name]]
        chances = draws.array(self.context)
        return replace_tokens(inputs_T, changeable, chances, rate, others)

    # ---- text

    def _change_row(self, row, trained, begins, key) -> tuple:
        """(row, trained, begins), each (T + 1,), with other text."""
        size, pad = len(row), self.specials['<pad>']
        used = size - int(np.argmax(row[::-1] != pad)) if np.any(row != pad) else 0
        changeable = self._is_changeable(row, trained, self._fixed)[:used]
        starts = begins[:used].copy()
        starts[1:] |= changeable[1:] != changeable[:-1]
        starts[1:] |= trained[1:used] != trained[: used - 1]
        places = [*np.flatnonzero(starts).tolist(), used]
        places = places if places[0] == 0 else [0, *places]
        draws = {name: Draws(*key, name) for name in self._names}
        room = size - used
        parts = [], [], []
        for start, end in zip(places, places[1:], strict=False):
            tokens, is_trained = row[start:end], trained[start:end]
            is_begin = begins[start:end]
            changed = None
            if changeable[start]:
                changed = self._change_tokens(tokens.tolist(), draws)
            if changed and not (
                self._is_dialogue and len(changed) - (end - start) > room
            ):
                room -= len(changed) - (end - start)
                tokens = np.array(changed, row.dtype)
                is_trained = np.full(len(changed), is_trained[0])
                is_begin = np.arange(len(changed)) < int(is_begin[0])
            for part, array in zip(parts, (tokens, is_trained, is_begin), strict=True):
                part.append(array)
        arrays = [np.concatenate(part) for part in parts]
        excess = len(arrays[0]) - size
        if excess > 0:
            # A text in another order begins with the token that says so.
            keep_start = MIDDLE in self._names or Draws(*key, 'cut')() < 0.5
            return tuple(
                array[:size] if keep_start else array[excess:] for array in arrays
            )
        fills = pad, False, False
        return tuple(
            np.pad(array, (0, -excess), constant_values=fill)
            for array, fill in zip(arrays, fills, strict=True)
        )

    def _change_tokens(self, tokens: list[int], draws: dict) -> list[int] | None:
        """Other tokens of a piece of text; None if it stays as it is."""
        decoded = decode_whole_characters(tokens, self._tokenizer.bytes_of)
        if decoded is None:
            return None
        first, last, text = decoded
        parts = [text]
        for name in self._names:
            if change := TEXT_CHANGES.get(name):
                parts = [
                    part
                    if isinstance(part, int)
                    else self._change(change, part, draws[name])
                    for part in parts
                ]
            elif name == MIDDLE and len(tokens) == last - first:
                parts = fill_in_the_middle(
                    *parts, draws[name], self._data.fim_rate, self._sentinels
                )
        if parts == [text] and not self._sampler:
            return None
        encoded = []
        for part in parts:
            ids = [part] if isinstance(part, int) else self._encode(part, draws)
            if ids is None:
                return None
            encoded += ids
        return [*tokens[:first], *encoded, *tokens[last:]]

    def _change(self, change, text: str, draws: Draws) -> str:
        turns = text.split(self._turn_end) if self._turn_end else [text]
        changed = [change(turn, draws, self._options) for turn in turns]
        return (self._turn_end or '').join(changed)

    def _encode(self, text: str, draws: dict) -> list[int] | None:
        """Ids whose bytes are those of the text; None if the tokenizer has none."""
        if self._sampler:
            return self._sampler.encode(text, draws[SUBWORDS])
        content, bytes_of = text.encode(), self._tokenizer.bytes_of
        for written in (text, text.removeprefix(' ')):  # Llama 2 adds a space itself
            ids = self._tokenizer.encode(written)
            if b''.join(map(bytes_of, ids)) == content:
                return ids
        return None


def decode_whole_characters(tokens, bytes_of) -> tuple[int, int, str] | None:
    """(first, last, text) of the tokens[first:last] that are whole characters.

    A row may begin and end within a character, whose tokens then stay. None if there is
    no text left, or invalid UTF-8 in it.
    """
    content = [bytes_of(token) for token in tokens]
    first, size = 0, len(tokens)
    while first < size and content[first] and content[first][0] & 0xC0 == 0x80:
        first += 1
    for last in range(size, max(first, size - 4), -1):
        try:
            return first, last, b''.join(content[first:last]).decode()
        except UnicodeDecodeError:
            continue
    return None
