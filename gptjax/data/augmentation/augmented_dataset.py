"""Training rows that are changed anew in every epoch, by `data.augment`.

A row is changed when it is loaded. The pieces of text between special tokens are
decoded, changed and encoded again, and the row is packed anew:

    stored   BOS a b c BOS d e     →  BOS a' b' b'' c' BOS d' e'

A row that has become shorter is padded. A row of text that has become longer loses its
end or, as often, its beginning, so that no place is lost in every epoch. In a row of a
conversation a piece that does not fit is left as it was. Targets, positions, segments
and weights are those of the new row; noise of tokens then changes only its inputs.
"""

import itertools

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
        self._token_noise = [name for name in self._names if name in TOKEN_NOISE]
        self._changes_text = len(self._token_noise) < len(self._names)
        # The template 'text' ends turns by empty lines, which have to stay.
        text_turns = self._is_dialogue and config.chat.template == 'text'
        self._turn_end = TURN_END if text_turns else None
        self._fixed = np.zeros(tokenizer.vocab_size, bool)  # tokens that never change
        self._fixed[[*tokenizer.specials.values(), *self.specials.values()]] = True
        self._fixed[[*(self._sentinels or ())]] = True
        self._fixed_for_noise = self._fixed.copy()
        if text_turns:
            size, end = tokenizer.vocab_size, b'\n'
            self._fixed_for_noise |= [end in tokenizer.bytes_of(t) for t in range(size)]

    def load(self, choice: RowChoice) -> dict[str, np.ndarray]:
        rows, trained, begins = self.read(choice)
        keys = {}  # of the random numbers, by the row of the batch
        for n, (index, *place) in enumerate(
            zip(choice.source, choice.epoch, choice.row, strict=True)
        ):
            source = self.sources[index]
            if index < 0 or source.masked != self._is_dialogue:
                continue
            keys[n] = self._seed, source.name, *place
            if self._changes_text:
                arrays = self._change_row(rows[n], trained[n], begins[n], keys[n])
                rows[n], trained[n], begins[n] = arrays
        batch = self.unpack(rows, trained, begins)
        for n, key in keys.items():
            source, inputs_T = self.sources[choice.source[n]], batch['inputs'][n]
            for name in self._token_noise:
                changeable_T = self._is_changeable(
                    rows[n, :-1], trained[n, :-1], self._fixed_for_noise
                )
                self._add_noise(name, Draws(*key, name), source, inputs_T, changeable_T)
        return batch

    def _is_changeable(self, tokens, trained, fixed) -> np.ndarray:
        """Which tokens may change; `fixed` (V,) are those that never do."""
        changeable = ~fixed[tokens]
        if self._is_dialogue and not self._data.augment_replies:
            changeable &= ~trained
        return changeable

    def _add_noise(self, name, draws, source, inputs_T, changeable_T) -> None:
        """Replaces a share of the inputs in place; special tokens never change.

        The two kinds are those of Xie et al. 2017, 'Data noising as smoothing in neural
        network language models', section 3.2: unigram noising takes tokens of a random
        row, so in proportion to their frequency, and blank noising one of no text.
        """
        others_T = np.full_like(inputs_T, self.specials['<pad>'])  # in no text
        if name == 'token_dropout':
            row = np.array([draws.below(source.num_rows)])
            others_T = source.read(row)[0, :-1]
            changeable_T = changeable_T & ~self._fixed_for_noise[others_T]
        rate, chances_T = self._data[TOKEN_NOISE[name]], draws.array(self.context)
        replaced_T = changeable_T & (chances_T < rate)
        inputs_T[replaced_T] = others_T[replaced_T]

    # ---- text

    def _change_row(self, row, trained, begins, key) -> list[np.ndarray]:
        """[row, trained, begins], each (T + 1,), with other text."""
        used = len(np.trim_zeros(row != self.specials['<pad>'], 'b'))
        room = len(row) - used
        changeable = self._is_changeable(row, trained, self._fixed)
        # A piece is text between special tokens, all of it trained or none.
        starts = begins[:used].copy()
        starts[1:] |= (changeable[1:] != changeable[:-1])[: used - 1]
        starts[1:] |= (trained[1:] != trained[:-1])[: used - 1]
        starts[:1] = True
        places = [*np.flatnonzero(starts).tolist(), used]
        draws = {name: Draws(*key, name) for name in self._names}
        pieces = []
        for start, end in itertools.pairwise(places):
            piece = [array[start:end] for array in (row, trained, begins)]
            tokens = changeable[start] and self._change_tokens(piece[0].tolist(), draws)
            growth = len(tokens) - (end - start) if tokens else 0
            if tokens and not (self._is_dialogue and growth > room):
                room -= growth
                is_first = np.arange(len(tokens)) == 0
                piece = [
                    np.array(tokens, row.dtype),
                    np.full(len(tokens), trained[start]),
                    is_first & begins[start],
                ]
            pieces.append(piece)
        arrays = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        if room >= 0:
            fills = self.specials['<pad>'], False, False
            return [
                np.pad(array, (0, room), constant_values=fill)
                for array, fill in zip(arrays, fills, strict=True)
            ]
        # A text in another order has the token that says so at its beginning.
        keep_start = MIDDLE in self._names or Draws(*key, 'cut')() < 0.5
        return [array[:room] if keep_start else array[-room:] for array in arrays]

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
        if not self._turn_end:
            return changed[0]
        return self._turn_end.join(map(_as_turn, changed, turns))

    def _encode(self, text: str, draws: dict) -> list[int] | None:
        """Ids whose bytes are those of the text; None if the tokenizer has none."""
        if self._sampler:
            return self._sampler.encode(text, draws[SUBWORDS])
        content, bytes_of = text.encode(), self._tokenizer.bytes_of
        # Llama 2 puts a space before every text, which may stand within a word here:
        # after a line break, which is then left out, the text has its own tokens.
        for before, left_out in (('', 0), ('\n', 1), ('\n', 2)):
            ids = self._tokenizer.encode(before + text)[left_out:]
            if b''.join(map(bytes_of, ids)) == content:
                return ids
        return None


def _as_turn(changed: str, turn: str) -> str:
    """The changed turn without empty lines, which would end it.

    'Hi\\n\\nand dogs' → 'Hi\\nand dogs'; the turn itself if nothing else is left.
    """
    if changed == turn:
        return turn
    lines = [line for line in changed.split('\n') if line.strip()]
    return '\n'.join(lines) or turn


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
