"""The stage `check`, and what every stage refuses before its first step."""

import json

import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.data import chat_template, training_checks
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval import training_examples
from gptjax.tokenizer.load_tokenizer import load_tokenizer
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
