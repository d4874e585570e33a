"""The task `dialogue`: examples, and results of models with known probabilities."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from configs import common
from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import chat_template, conversations
from gptjax.data.conversations import conversation_id
from gptjax.eval import results
from gptjax.eval.compare import compare
from gptjax.eval.report import tables
from gptjax.eval.report.run_report import write_report
from gptjax.eval.stage_table import write_stage_table
from gptjax.eval.tasks.dialogue_task import (
    _encode_reply,
    encode_recent_messages,
    evaluate_dialogue,
    read_dialogue_examples,
    skip_refused,
    write_transcripts,
)
from gptjax.eval.tasks.examples import Example
from gptjax.eval.tasks.predictor import Predictor
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from tests import runs
from tests.data.made_templates import TEMPLATES, make_tokenizer

CONTEXT = 64


@pytest.fixture(scope='module')
def tokenizer():
    texts = ['what is it? the cat sat on the mat. and then it ran off to see.\n\n'] * 9
    return Tokenizer(train_model(texts, 'bpe', 300))


def view(identity, *texts, first='user'):
    roles = ('user', 'assistant') if first == 'user' else ('assistant', 'user')
    messages = [
        dict(role=roles[place % 2], content=text) for place, text in enumerate(texts)
    ]
    return dict(id=identity, source=identity.split('/')[0], messages=messages)


def views():
    for n in range(12):
        texts = ('what?', f'the cat {n}', 'and then', f'it ran off {n}')
        yield view(f'chitchat/{n}@0', *texts, first='assistant')
        yield view(f'chitchat/{n}@1', *texts)
        yield view(f'own/{n}', 'what is it?', f'the mat number {n}')


def settings(**fields):
    section = common.base().eval
    section.update(conversations=0, batch_size=4, max_tokens=16, resamples=50)
    section.update(fields)
    return section


def run_with(tmp_path, *views):
    lines = ''.join(json.dumps(view) + '\n' for view in views)
    storage.write_text(tmp_path / 'dialogue' / 'validation.jsonl', lines)
    return tmp_path


def read_examples(tmp_path, name='dialogue', **fields):
    run = run_with(tmp_path, *views())
    return read_dialogue_examples(name, run, settings(**fields))


def make_predictor(tokenizer, template, complete=None, **fields):
    """A model in which -ln P of a token is its id modulo 7."""

    def scores(batch):
        return -(batch['targets'] % 7).astype(np.float64), batch['targets'] < 0

    complete = complete or (lambda prompts, parameters: [reply('')] * len(prompts))
    return Predictor(tokenizer, template, CONTEXT, scores, complete, settings(**fields))


def reply(text, finish='stop', tokens=3):
    return SimpleNamespace(text=text, finish=finish, tokens=[0] * tokens)


# ---- examples


def test_conversations_with_similar_names_are_different(tmp_path):
    names = ['own/ann@gmail.com', 'own/ann@yahoo.com', 'own/ann']
    run = run_with(tmp_path, *(view(name, 'hi', f'hello {name}') for name in names))
    found = read_dialogue_examples('dialogue', run, settings(choices=2))
    assert sorted(example.id for example in found) == sorted(names)


def test_one_reply_of_each_conversation(tmp_path):
    found = read_examples(tmp_path)
    names = [conversation_id(example.id) for example in found]
    assert len(names) == len(set(names)) == 24
    messages_of = {view['id']: view['messages'] for view in views()}
    for example in found:
        *prompt, reply = messages_of[example.id][: len(example.prompt) + 1]
        assert example.prompt == prompt and prompt[-1]['role'] == 'user'
        assert reply == dict(role='assistant', content=example.references[0])
        assert example.choices[example.answer] == example.references[0]
        assert len(set(example.choices)) == 4
    sides = {example.id[-2:] for example in found if example.id.startswith('chit')}
    assert sides == {'@0', '@1'}
    ids = lambda examples: [example.id for example in examples]
    assert ids(read_examples(tmp_path, conversations=5)) == ids(found[:5])
    assert ids(read_examples(tmp_path, seed=1)) != ids(found)


def test_the_sources_of_another_run_can_be_chosen(tmp_path):
    own = [v for v in views() if v['source'] == 'own']
    expected = read_dialogue_examples(
        'dialogue', run_with(tmp_path / 'own', *own), settings()
    )
    name = f'dialogue:{run_with(tmp_path / "all", *views())}:'
    assert read_dialogue_examples(name + 'own', tmp_path, settings()) == expected
    both = read_dialogue_examples(name + 'own+chitchat', tmp_path, settings())
    assert both == read_examples(tmp_path)
    with pytest.raises(UserError, match='no held-out conversation of b: use chitchat'):
        read_dialogue_examples(name + 'own+b', tmp_path, settings())


def test_runs_without_a_reply_to_evaluate(tmp_path):
    with pytest.raises(UserError, match='--tasks=dialogue:runs/sft'):
        read_dialogue_examples('dialogue', tmp_path, settings())
    alone = view('own/1', 'hello, anybody?', first='assistant')
    long = view('own/2', 'hm', 'x' * (conversations.MAX_REPLY_BYTES + 1))
    with pytest.raises(UserError, match='has a reply to a user'):
        read_dialogue_examples('dialogue', run_with(tmp_path, alone, long), settings())


def test_a_prompt_that_is_too_long_loses_its_oldest_messages(tokenizer):
    predictor = make_predictor(tokenizer, 'turns')
    system = dict(role='system', content='the cat')
    messages = view('a', *['the cat sat on the mat'] * 9)['messages']
    tokens = encode_recent_messages(predictor, [system, *messages])
    assert tokens[: len(tokenizer.encode('the cat')) + 2] == [
        tokenizer.bos_id,
        tokenizer.specials['<|system|>'],
        *tokenizer.encode('the cat'),
    ]
    assert len(tokens) <= CONTEXT - 16
    assert 1 <= tokens.count(tokenizer.specials['<|user|>']) < 5
    long = dict(role='user', content='the cat sat ' * 40)
    tokens = encode_recent_messages(predictor, [long])
    assert len(tokens) == CONTEXT - 16
    assert tokens[-1] == tokenizer.specials['<|assistant|>']


def test_conversations_that_the_template_refuses_are_left_out(tmp_path, capsys):
    tokenizer, _ = make_tokenizer(tmp_path, TEMPLATES['gemma_2'])
    predictor = make_predictor(tokenizer, 'turns')
    hi, system = (dict(role=role, content='hi') for role in ('user', 'system'))
    begun = Example('a', [dict(hi, role='assistant'), hi], ('yes',))
    asked, refused = begun._replace(prompt=[hi]), begun._replace(prompt=[system, hi])
    assert skip_refused(predictor, [begun, refused]) == [begun]
    assert 'left out 1 of 2 conversations: ' in capsys.readouterr().out
    # The reply after a prompt is that after the prompt that is encoded.
    assert _encode_reply(predictor, begun, 'yes') == _encode_reply(
        predictor, asked, 'yes'
    )
    with pytest.raises(UserError, match='no system messages'):
        skip_refused(predictor, [refused])
    text = make_predictor(tokenizer, 'text')
    assert skip_refused(text, [refused]) == [refused]


# ---- results


@pytest.mark.parametrize('template', chat_template.TEMPLATES)
def test_likelihoods_by_hand(tokenizer, template, tmp_path):
    examples = read_examples(tmp_path)
    found = evaluate_dialogue(make_predictor(tokenizer, template), examples)

    def nats(text, unfinished=False):
        message = dict(role='assistant', content=text)
        (turn,) = chat_template.encode_turns([message], tokenizer, template, unfinished)
        return sum(token % 7 for token in turn.content)

    replies = [example.references[0] for example in examples]
    size = sum(len(reply.encode()) for reply in replies)
    ended = sum(map(nats, replies))
    unended = sum(nats(reply, unfinished=True) for reply in replies)
    right = [
        int(np.argmin([*map(nats, example.choices)])) == example.answer
        for example in examples
    ]
    figures = found['figures']
    value = lambda name: figures[name]['value']
    assert value('reply_bits') == pytest.approx(ended / math.log(2) / size)
    assert value('reply_bits_open') == pytest.approx(unended / math.log(2) / size)
    assert value('accuracy') == pytest.approx(np.mean(right))
    assert figures['accuracy']['baselines']['chance']['value'] == 0.25
    # This model ignores its prompt.
    blind = figures['reply_bits']['baselines']['without the prompt']
    assert blind['value'] == pytest.approx(value('reply_bits'))
    assert {'reply_bits/chitchat', 'accuracy/own'} <= figures.keys()
    assert results.read_columns(found)['bytes'].sum() == size


def test_one_conversation_has_no_reply_to_choose_from(tokenizer, tmp_path, capsys):
    run = run_with(tmp_path, view('own/1', 'what is it?', 'the mat'))
    examples = read_dialogue_examples('dialogue', run, settings())
    assert 'eval.choices=4 is more than the 1 different' in capsys.readouterr().out
    found = evaluate_dialogue(make_predictor(tokenizer, 'turns'), examples)
    figures = found['figures']
    assert not any('accuracy' in name for name in figures)
    assert figures['reply_bits']['value'] > 0 and figures['stops']['value'] == 1
    evaluation = dict(tasks=dict(dialogue=found), tokenizer='t')
    results.write_results(run / 'eval.json', evaluation)
    assert 'NaN' not in (run / 'eval.json').read_text()
    compare(str(run), str(run))
    storage.write_text(run / 'metrics.jsonl', '')
    write_stage_table(tmp_path.parent, [f'{run.name}={run.name}'])
    tables.print_tasks('run', dict(dialogue=found))


def test_stops_greedy_and_drawn(tokenizer, tmp_path, capsys):
    prompts_seen = []

    def complete(prompts, parameters):
        prompts_seen.extend(prompts)
        assert all(p.stop_tokens == (end,) and p.max_tokens == 16 for p in parameters)
        greedy = parameters[0].temperature == 0
        return [
            reply('hm', 'stop' if greedy or n % 2 else 'length', tokens=4)
            for n in range(len(prompts))
        ]

    end = tokenizer.specials['<|end|>']
    examples = read_examples(tmp_path)
    found = evaluate_dialogue(make_predictor(tokenizer, 'turns', complete), examples)
    figures = found['figures']
    assert figures['stops']['value'] == 1.0 and figures['stops_drawn']['value'] == 0.5
    assert figures['reply_tokens']['value'] == 4.0
    assert figures['stops']['baselines']['the people']['value'] > 0.9
    assert all(p[-1] == tokenizer.specials['<|assistant|>'] for p in prompts_seen)

    earlier = evaluate_dialogue(make_predictor(tokenizer, 'text'), examples)
    results.add_baseline(found['figures'], 'earlier, before', earlier['figures'])
    tables.print_tasks('run', dict(dialogue=found))
    assert 'earlier, before' in capsys.readouterr().out
    by_model = {'this <model>': found, 'earlier': earlier}
    write_transcripts(tmp_path, examples, by_model)
    transcripts = storage.read_json(tmp_path / 'samples' / 'dialogue.json')
    assert [t['id'] for t in transcripts] == [example.id for example in examples[:8]]
    storage.write_json(tmp_path / 'eval.json', dict(tasks=dict(dialogue=found)))
    page = write_report(tmp_path).read_text(encoding='utf-8')
    assert 'of earlier, before' in page and 'bits per byte of replies</dt>' in page
    assert 'this &lt;model&gt;, likeliest' in page and examples[0].references[0] in page


# ---- the stage


@pytest.mark.slow
def test_a_fine_tuned_run_is_compared_with_its_start_run(trained_run, tmp_path):
    workdir = tmp_path / 'sft'
    words = (
        f'--workdir={workdir}',
        '--config=configs/sft.py',
        f'--config.start.run={trained_run}',
        '--config.dialogue.sources.chitchat.limit=200',
        '--config.sft.epochs=0.0',
        '--config.train.num_steps=4',
        '--config.optim.warmup_steps=0',
        '--config.train.eval_every=2',
        '--config.checkpoint.every=2',
        '--config.eval.max_tokens=8',
    )
    runs.finish(runs.start('sft', *words))
    output, _ = runs.finish(runs.start('eval', f'--workdir={workdir}'))
    assert 'bits per byte of replies' in output and 'run, before' in output
    found = storage.read_json(workdir / 'eval.json')
    assert 'results' not in found
    # The baseline equals the result of the start run itself.
    earlier = runs.copy(trained_run, tmp_path / 'earlier')
    copy = tmp_path / 'earlier.json'
    words = (f'--workdir={earlier}', f'--tasks=dialogue:{workdir}', f'--json={copy}')
    runs.finish(runs.start('eval', *words, '--max_tokens=8'))
    earlier_result = storage.read_json(copy)['tasks']['dialogue']
    baselines = found['tasks']['dialogue']['figures']['reply_bits']['baselines']
    assert baselines['run, before']['value'] == pytest.approx(
        earlier_result['figures']['reply_bits']['value'], rel=1e-6
    )
    output, _ = runs.finish(runs.start('eval', '--compare', copy, workdir))
    assert 'bits per byte of replies' in output
    assert 'template is text and turns' in output
    runs.finish(runs.start('report', f'--workdir={workdir}'))
    page = (workdir / 'report.html').read_text(encoding='utf-8')
    assert 'Transcripts' in page and 'run, before' in page
