"""What a stage would train on, for the terminal: examples, shares and lengths.

    own/c7: 24 tokens, 9 trained
    <bos><|user|>what is 7 plus 7?<|end|><|assistant|>⟦14, I think<|end|>⟧

What is trained is green in a terminal, and in ⟦ ⟧ elsewhere.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.data import training_checks
from gptjax.data.packed_conversations import open_training_dataset
from gptjax.data.training_checks import Example
from gptjax.tokenizer.load_tokenizer import load_tokenizer

SHOWN = 3  # examples
LONGEST = 400  # tokens of an example that are shown
GREEN, PLAIN = '\033[32m', '\033[0m'


def show_conversations(config: ConfigDict, workdir: Path) -> None:
    """Prints conversations of `sft` with the tokens that it trains on."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    rows = open_training_dataset(config, workdir)
    examples = training_checks.check_conversations(
        rows, tokenizer, config.chat.template, config.seed
    )
    print_examples(examples, tokenizer, config.data.context)
    total = Counter()
    for counts in rows.manifest['splits']['train'].values():
        total.update({n: v for n, v in counts.items() if isinstance(v, int)})
    tokens = total['rows'] * (config.data.context + 1) - total['padding']
    print(
        f'trained: {total["predicted_tokens"]:,} of {tokens:,} tokens of conversations '
        f'({total["predicted_tokens"] / tokens:.0%}), in {total["pieces"]:,} examples '
        f'of {total["views"]:,} conversations'
    )
    print(
        f'cut: {total["cut_turns"]:,} of {total["turns"]:,} replies lose their end '
        f'({total["cut_tokens"]:,} tokens), {total["cut_prompts"]:,} messages before a '
        'reply lose their beginning'
    )


def print_examples(examples: Sequence[Example], tokenizer, context: int) -> None:
    """Prints the first examples, and the lengths of all."""
    for number, one in enumerate(examples[:SHOWN], start=1):
        print(f'example {number}: {len(one.tokens)} tokens, {sum(one.trained)} trained')
        print(mark_tokens(one, tokenizer, sys.stdout.isatty()))
    print_lengths([len(one.tokens) for one in examples], context)


def print_lengths(lengths: Sequence[int], context: int) -> None:
    middle, high = np.percentile(lengths, [50, 95])
    print(
        f'lengths of {len(lengths):,} examples: median {middle:.0f}, 95% up to '
        f'{high:.0f}, longest {max(lengths):,} tokens of data.context={context}'
    )


def mark_tokens(example: Example, tokenizer, colour: bool) -> str:
    """The text of an example with its special tokens; what is trained is marked."""
    begin, end = (GREEN, PLAIN) if colour else ('⟦', '⟧')
    pairs = list(zip(example.tokens, example.trained, strict=True))
    text = ''
    for trained, group in groupby(pairs[:LONGEST], key=lambda pair: pair[1]):
        part = decode([token for token, _ in group], tokenizer)
        text += f'{begin}{part}{end}' if trained else part
    more = len(pairs) - LONGEST
    return f'{text} … and {more:,} more tokens' if more > 0 else text


def decode(tokens: Sequence[int], tokenizer) -> str:
    """The text of tokens, with the names of special tokens."""
    stream = tokenizer.stream(special_tokens=True)
    return ''.join(map(stream.push, tokens)) + stream.finish()


SHOW = dict(sft=show_conversations)
