"""The stage `check`, and what every stage refuses before its first step."""

import json

import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import chat_template, training_checks
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval import training_examples
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests import runs
from tests.data.made_templates import IM, Made, make_tokenizer
from tests.post import starts
from tests.tokenizer import made_tokenizers


def chat_lines(count=40):
    return [
        dict(
            messages=[
                dict(role='user', content=f'{n} + 1 ='),
                dict(role='assistant', content=str(n + 1)),
            ]
        )
        for n in range(count)
    ]


def write_lines(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp('check')
    starts.write_start(folder)
    write_lines(folder / 'chats.jsonl', chat_lines())
    return folder


def check(start, workdir, *words):
    words = *words, f'--config.start.run={start}/start'
    return runs.gptjax('check', '--workdir', workdir, *words)


def sft_words(start, chats='chats.jsonl'):
    return f'--config=configs/sft.py:chat={start}/{chats}', '--config.data.context=32'


def test_sft_shows_what_the_loss_sees_and_trains_nothing(start, tmp_path, capsys):
    assert check(start, tmp_path / 'run', *sft_words(start)) == 0
    output = capsys.readouterr().out
    assert '<|assistant|>⟦' in output and '<|end|>⟧' in output
    assert 'lengths of' in output and 'of data.context=32' in output
    assert not (tmp_path / 'run' / 'checkpoints').exists()
    rows = PackedDataset(tmp_path / 'run' / 'dialogue', 'train', 'sft', 'dialogue')
    tokenizer = load_tokenizer(tmp_path / 'run' / 'tokenizer')
    examples = list(training_checks.read_examples(rows, seed=0))
    # Every conversation is there as a whole, with the marks of the chat template.
    written = {
        tuple(
            map(
                tuple,
                chat_template.encode_conversation(line['messages'], tokenizer, 'turns'),
            )
        )
        for line in chat_lines()
    }
    assert {(tuple(e.tokens), tuple(e.trained)) for e in examples} <= written
    assert len(examples) == sum(
        s['pieces'] for s in rows.manifest['splits']['train'].values()
    )
    # The stage finds what `check` made.
    assert check(start, tmp_path / 'run', *sft_words(start)) == 0
    assert '(found)' in capsys.readouterr().out
    colour = training_examples.mark_tokens(examples[0], tokenizer, colour=True)
    assert '\033[32m' in colour and '⟦' not in colour


def test_sft_refuses_cut_ends_and_rows_without_loss(
    start, tmp_path, capsys, monkeypatch
):
    long = [
        dict(
            messages=[
                dict(role='user', content='a'),
                dict(role='assistant', content='7 + ' * 40),
            ]
        )
    ]
    write_lines(start / 'long.jsonl', long * 20)
    assert check(start, tmp_path / 'run', *sft_words(start, 'long.jsonl')) == 2
    assert 'since all replies are cut' in capsys.readouterr().err
    read = PackedDataset.read

    def untrained(self, choice):
        rows, trained, begins = read(self, choice)
        return rows, np.zeros_like(trained), begins

    monkeypatch.setattr(PackedDataset, 'read', untrained)
    assert check(start, tmp_path / 'none', *sft_words(start)) == 2
    assert 'without a trained token' in capsys.readouterr().err


WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}<|im_end|>{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)
TWICE = (
    "{{ bos_token + bos_token }}{% for m in messages %}{{ m['content'] + "
    "'<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    'template, pattern',
    ((WITHOUT_END, 'no end of a reply is trained'), (TWICE, 'begins with two BOS')),
)
def test_templates_that_ruin_a_model_are_refused(tmp_path, template, pattern):
    made = Made(template, IM, made_tokenizers.sentencepiece)
    tokenizer, _ = make_tokenizer(tmp_path, made)
    with pytest.raises(UserError, match=pattern):
        training_checks.check_template(tokenizer, 'turns')


def test_padding_that_ends_a_reply_is_refused(tmp_path):
    tokenizer, _ = make_tokenizer(tmp_path, Made(TWICE, IM))
    tokenizer.pad_id = tokenizer.specials['<|im_end|>']
    with pytest.raises(UserError, match='is the padding and also ends a reply'):
        training_checks.check_template(tokenizer, 'turns')


# ---- the other stages


def pair_lines(count=40):
    return [
        dict(prompt=f'{n} + 1 =', chosen=str(n + 1), rejected='9 - 9')
        for n in range(count)
    ]


def policy_words(start, name):
    return (
        f'--config=configs/{name}.py',
        f'--config.task.path={start}/problems.jsonl',
        '--config.task.rewards.correct.function=correct',
        '--config.policy.max_tokens=8',
    )


def words_of(start, stage):
    """The flags of a stage on a small file, and what `check` has to show of it."""
    write_lines(start / 'pairs.jsonl', pair_lines())
    text = ''.join(f'what is {n} + 2 = {n + 2}?\n\n' for n in range(3000))
    (start / 'text.txt').write_text(text)
    return {
        'pretrain': (
            [f'--config=configs/own.py:{start}/text.txt', '--config.data.context=32'],
            ('⟦', 'trained tokens in'),
        ),
        'dpo': (
            [
                '--config=configs/dpo.py',
                f'--config.preference.path={start}/pairs.jsonl',
            ],
            ('chosen reply of pairs.jsonl#', 'rejected reply', '<|end|>⟧'),
        ),
        'reward': (
            [f'--config=configs/reward.py:{start}/pairs.jsonl'],
            ('chosen, value 1', 'rejected, value 0', '⟦<|end|>⟧'),
        ),
        'grpo': (policy_words(start, 'grpo'), ('answer', 'replies of the policy')),
        'ppo': (policy_words(start, 'ppo'), ('answer', 'replies of the policy')),
    }[stage]


@pytest.mark.parametrize('stage', ('pretrain', 'dpo', 'reward', 'grpo', 'ppo'))
def test_every_stage_shows_what_it_would_train_on(start, tmp_path, capsys, stage):
    words, expected = words_of(start, stage)
    if stage == 'pretrain':
        words += ['--config.tokenizer.vocab_size=300', '--config.model.context=32']
        assert runs.gptjax('check', '--workdir', tmp_path / 'run', *words) == 0
    else:
        assert check(start, tmp_path / 'run', *words) == 0
    output = capsys.readouterr().out
    assert all(text in output for text in (*expected, 'lengths of', 'data.context=32'))
    assert f'would ruin `{stage}`' in output
    assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize(
    'stage, words, pattern',
    (
        ('dpo', ['--config.chat.template=text'], 'has learned chat.template='),
        ('sft', ['--config.chat.template=text'], 'has learned chat.template='),
        ('dpo', ['--config.preference.reference={other}'], 'with another tokenizer'),
        ('dpo', ['--config.preference.path={labels}'], 'compares two replies'),
        ('grpo', ['--config.policy.replies=1'], 'use 2 or more'),
        ('grpo', ['--config.data.context=8'], 'policy.max_tokens=8'),
    ),
)
def test_what_ruins_a_model_is_refused(start, tmp_path, capsys, stage, words, pattern):
    labels = [
        dict(prompt=f'{n} + 1 =', completion='2', label=n == 1) for n in range(20)
    ]
    write_lines(tmp_path / 'labels.jsonl', labels)
    other = tmp_path / 'other'
    storage.write_bytes(
        other / 'tokenizer' / 'tokenizer.model', train_model(['a b c'], 'bpe', 269)
    )
    first = sft_words(start) if stage == 'sft' else words_of(start, stage)[0]
    paths = dict(other=other, labels=tmp_path / 'labels.jsonl')
    words = [*first, *(word.format(**paths) for word in words)]
    assert check(start, tmp_path / 'run', *words) == 2
    assert pattern in capsys.readouterr().err


def test_a_run_with_the_tokenizer_of_another_model_is_refused(start, tmp_path, capsys):
    path = tmp_path / 'run' / 'tokenizer' / 'tokenizer.model'
    storage.write_bytes(path, train_model(['a b c'], 'bpe', 269))
    (tmp_path / 'run' / 'config.json').write_text('{}')
    assert check(start, tmp_path / 'run', *sft_words(start)) == 2
    assert 'has another tokenizer than start.run' in capsys.readouterr().err


def test_the_stage_is_that_of_the_config(start, tmp_path, capsys):
    config = tmp_path / 'both.py'
    config.write_text(
        'from configs import common, sft\n'
        'def get_config():\n'
        "    config = sft.get_config('chat=x.jsonl')\n"
        '    config.preference = common.preference_section()\n'
        '    return config\n'
    )
    assert check(start, tmp_path / 'run', f'--config={config}') == 2
    assert (
        '--stage is missing: the config is for dpo and sft' in capsys.readouterr().err
    )
