"""Runs leave with the chat template that they were trained with, and come back so."""

import json
import shutil

import pytest

from configs import common
from gptjax.convert.export_tokenizer import export_tokenizer
from gptjax.core import run_dir
from gptjax.data.chat_template import JINJA, JINJA_BOS, encode_prompt, stop_conditions
from gptjax.tokenizer.load_tokenizer import load_tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests import runs
from tests.convert import made_models
from tests.tokenizer import made_tokenizers

CHAT = [
    dict(role='system', content='Be kind.'),
    dict(role='user', content='Hello\n\nuser <|end|>'),
]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The run of an imported base model that has our tokenizer."""
    place = tmp_path_factory.mktemp('chats')
    (place / 'tokenizer').mkdir()
    content = train_model(made_tokenizers.TEXT, 'bpe', 300)
    (place / 'tokenizer' / 'tokenizer.model').write_bytes(content)
    made_models.write_folder(place / 'hf', vocab_size=300)
    export_tokenizer(place / 'tokenizer', place / 'hf', 'text', 128)
    go('import', '--from', place / 'hf', '--workdir', place / 'base')
    return place / 'base'


def go(*words):
    assert runs.gptjax(*words) == 0


def fine_tune(run, tuned, template):
    """A copy of `run` whose config says that it was fine-tuned in `template`."""
    shutil.copytree(run, tuned)
    config = run_dir.read_config(tuned)
    config.sft = common.sft_section()
    config.chat.template = template
    run_dir.write_config(config, tuned)


def prompt_of(run):
    """What the run chats with: the prompt, and what ends a reply."""
    tokenizer = load_tokenizer(run / 'tokenizer')
    template = run_dir.read_config(run).chat.template
    prompt = encode_prompt(CHAT, tokenizer, template)
    return prompt, stop_conditions(template, tokenizer)


@pytest.mark.parametrize('template', ['turns', 'text'])
def test_a_chat_run_of_ours_comes_back(base, tmp_path, template):
    tuned, out, back = (tmp_path / name for name in ('tuned', 'out', 'back'))
    fine_tune(base, tuned, template)
    go('export', '--workdir', tuned, '--to', out)
    go('import', '--from', out, '--workdir', back)
    assert prompt_of(back) == prompt_of(tuned)
    assert run_dir.read_config(back).chat.template == template

    prompt, (_, stop_tokens) = prompt_of(tuned)
    for name in ('config.json', 'generation_config.json'):
        ends = json.loads((out / name).read_text())['eos_token_id']
        assert {*stop_tokens} <= {*(ends if isinstance(ends, list) else [ends])}
    (out / 'tokenizer.model').unlink()  # tokenizer.json alone gives the same
    other = tmp_path / 'other'
    go('import', '--from', out, '--workdir', other)
    assert prompt_of(other) == prompt_of(tuned)
    # 'turns' stays what it is, whatever the run was trained in.
    ours, theirs = (load_tokenizer(run / 'tokenizer') for run in (base, other))
    assert encode_prompt(CHAT, ours, 'turns') == encode_prompt(CHAT, theirs, 'turns')


def test_the_template_is_that_of_the_last_training_on_conversations(base, tmp_path):
    tuned, more, out = (tmp_path / name for name in ('tuned', 'more', 'out'))
    fine_tune(base, tuned, 'turns')
    shutil.copytree(base, more)
    config = run_dir.read_config(more)
    config.start = common.start_section(str(tuned))
    config.chat.template = 'text'
    run_dir.write_config(config, more)
    go('export', '--workdir', more, '--to', out)
    written = (out / 'chat_template.jinja').read_text()
    assert written.removeprefix(JINJA_BOS) == JINJA['turns']


def test_an_imported_base_model_leaves_with_the_template_that_it_was_trained_in(
    tmp_path,
):
    hf, run, tuned, out = (tmp_path / name for name in ('hf', 'run', 'tuned', 'out'))
    made_models.write_folder(hf)
    go('import', '--from', hf, '--workdir', run)
    fine_tune(run, tuned, 'text')
    go('export', '--workdir', tuned, '--to', out)
    assert (out / 'chat_template.jinja').read_text() == JINJA['text']
    assert (out / 'tokenizer.json').read_bytes() == (hf / 'tokenizer.json').read_bytes()


def test_another_template_beside_our_tokenizer_is_kept(base, tmp_path):
    out, back = tmp_path / 'out', tmp_path / 'back'
    go('export', '--workdir', base, '--to', out)
    (out / 'chat_template.jinja').write_text("{{ messages[0]['content'] }}")
    go('import', '--from', out, '--workdir', back)
    tokenizer = load_tokenizer(back / 'tokenizer')
    assert prompt_of(back)[0] == tokenizer.encode('Be kind.')
