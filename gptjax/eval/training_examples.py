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
from gptjax.data.comparisons import encode_ratings
from gptjax.data.packed_conversations import open_training_dataset
from gptjax.data.packed_dataset import PackedDataset
from gptjax.data.preference_pairs import read_pairs
from gptjax.data.ratings import read_ratings
from gptjax.data.training_checks import Example
from gptjax.parallel.mesh import make_mesh
from gptjax.post.dpo import check_pairs
from gptjax.post.policy_gradient import check_policy
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.post.reward import check_groups, describe_data, group_size
from gptjax.post.rollout import make_prompt_format
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.train.init_from import read_start_config

SHOWN = 3  # examples
PROMPTS = 256  # problems whose lengths are counted
LONGEST = 400  # tokens of an example that are shown
GREEN, PLAIN = '\033[32m', '\033[0m'


def show_text(config: ConfigDict, workdir: Path) -> None:
    """Prints text of `pretrain`: every token is trained but the first of a row."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    rows = PackedDataset(workdir / 'prepared', 'train')
    training_checks.check_text(rows, tokenizer, config.seed)
    examples = list(training_checks.read_examples(rows, config.seed))
    print_examples(examples, tokenizer, config.data.context)
    print_share(examples)
    splits = rows.manifest['splits']['train'].values()
    print(
        f'text: {sum(counts["predicted_tokens"] for counts in splits):,} trained '
        f'tokens in {rows.num_rows:,} rows; a longer document goes on in the next row'
    )


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


def show_pairs(config: ConfigDict, workdir: Path) -> None:
    """Prints pairs, or labelled replies, of `dpo`."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    pairs = read_pairs(workdir, 'train')
    check_pairs(config, workdir, pairs, tokenizer)
    examples, names = [], []
    for pair in pairs:
        labels = ('rejected', 'chosen') if pair.labels is None else ('bad', 'good')
        for row, label in zip(pair.rows, pair.labels or (1, 0), strict=True):
            if label >= 0:
                trained = np.arange(len(row.tokens)) >= row.prompt_length
                one = Example(len(examples), row.tokens.tolist(), trained.tolist())
                examples.append(one)
                names.append(f'{labels[label]} reply of {pair.id}')
    print_examples(examples, tokenizer, config.data.context, names, 2 * SHOWN)
    print_share(examples)
    print(
        'cut: nothing; what is longer than data.context is left out, with a line when '
        'the pairs are made'
    )
    warn_of_new_template(config)


def show_ratings(config: ConfigDict, workdir: Path) -> None:
    """Prints conversations of `reward`; their last token gets the score."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    rated = read_ratings(workdir, 'train')
    train = encode_ratings(rated, tokenizer, config.chat.template, config.data.context)
    check_groups(config, group_size(config, train), make_mesh(config.mesh))
    examples = [
        Example(n, one.tokens.tolist(), [False] * (len(one.tokens) - 1) + [True])
        for n, one in enumerate(train.encoded)
    ]
    names = [
        f'{one.id}, value {one.value:g}'
        + (f', margin {one.margin:g}' if one.margin else '')
        for one in rated
    ]
    print_examples(examples, tokenizer, config.data.context, names, 2 * SHOWN)
    print('marked: the token whose hidden vector gives the reward')
    print(describe_data(train, config.data.context))


def show_problems(config: ConfigDict, workdir: Path) -> None:
    """Prints prompts of `ppo` and `grpo`; what is trained are the policy's replies."""
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    check_policy(config)
    training_checks.check_template(tokenizer, config.chat.template)
    prompt_format = make_prompt_format(config, 'policy', tokenizer)
    advice = prompt_format.room_advice
    task = make_task(config.task, config.seed, prompt_format.fits, advice)
    problems = [task.train(n) for n in range(PROMPTS)]
    examples = []
    for number, problem in enumerate(problems):
        tokens = prompt_format.prompt(problem.messages)
        examples.append(Example(number, tokens, [False] * len(tokens)))
    names = [
        f'prompt {one.id}, {f"answer {one.answer!r}" if one.answer else "no answer"}'
        for one in problems
    ]
    print_examples(examples, tokenizer, config.data.context, names)
    policy = config.policy
    print(
        f'trained: the replies of the policy, up to policy.max_tokens='
        f'{policy.max_tokens} tokens, {policy.replies} to each prompt, '
        f'{policy.prompts} prompts in a rollout'
    )
    warn_of_new_template(config)


def warn_of_new_template(config: ConfigDict) -> None:
    earlier = read_start_config(Path(config.start.run)).chat.template
    if (earlier, config.chat.template) == ('text', 'turns'):
        print(
            f'warning: chat.template=turns: {config.start.run} was trained with '
            'chat.template=text and has never seen the tokens of turns: run `sft` first'
        )


def print_examples(
    examples: Sequence[Example],
    tokenizer,
    context: int,
    names: Sequence[str] = (),
    shown: int = SHOWN,
) -> None:
    """Prints the first examples, and the lengths of all."""
    for number, one in enumerate(examples[:shown]):
        name = names[number] if names else f'example {number + 1}'
        print(f'{name}: {len(one.tokens)} tokens, {sum(one.trained)} trained')
        print(mark_tokens(one, tokenizer, sys.stdout.isatty()))
    print_lengths([len(one.tokens) for one in examples], context)


def print_share(examples: Sequence[Example]) -> None:
    trained = sum(sum(one.trained) for one in examples)
    tokens = sum(len(one.tokens) for one in examples)
    print(f'trained: {trained:,} of {tokens:,} tokens ({trained / tokens:.0%})')


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


SHOW = dict(
    pretrain=show_text,
    sft=show_conversations,
    reward=show_ratings,
    dpo=show_pairs,
    ppo=show_problems,
    grpo=show_problems,
)
