"""The model class of lm-evaluation-harness, with tasks that need no network."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.eval.evaluate import find_task
from gptjax.eval.harness import core_suites
from gptjax.eval.tasks.likelihood import score_pairs
from gptjax.eval.tasks.predictor import open_predictor
from gptjax.infer.request import SamplingParameters
from gptjax.train.load_model import load_model
from tests import helpers, runs

lm_eval = pytest.importorskip('lm_eval')

from gptjax.eval.harness import lm_harness  # noqa: E402

QUESTIONS = (
    ('How are you', [' today', ' in the town of my aunt', ' you'], 0),
    ('I like pizza. Do you like', [' pizza', ' it', ' music'], 1),
    ('what a', [' day', ' nice evening it was'], 0),
)
TEXTS = ('Hello there! How was your day?', 'I went to school. ' * 40, 'ok')
MULTIPLE_CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: gold
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATE = r"""
task: tiny_reply
output_type: generate_until
doc_to_text: "{{question}}\n"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: tiny_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


def write_tasks(folder) -> dict:
    """Writes the data and the tasks; returns {name: YAML file}."""
    rows = dict(
        tiny_choice=[dict(question=q, choices=c, gold=g) for q, c, g in QUESTIONS],
        tiny_reply=[dict(question=q, answer=c[0]) for q, c, _ in QUESTIONS],
        tiny_text=[dict(text=text) for text in TEXTS],
    )
    paths = {}
    for name, text in zip(rows, (MULTIPLE_CHOICE, GENERATE, ROLLING), strict=True):
        data = folder / f'{name}.jsonl'
        data.write_text(''.join(json.dumps(row) + '\n' for row in rows[name]))
        paths[name] = folder / f'{name}.yaml'
        paths[name].write_text(
            f'{text.lstrip()}dataset_path: json\ntest_split: train\n'
            f'dataset_kwargs: {{data_files: {data}, cache_dir: {folder}/cache}}\n'
        )
    return paths


@pytest.fixture(scope='module')
def predictor(trained_run):
    config = run_dir.read_config(trained_run)
    config.mesh.data = 1
    mesh = helpers.mesh_of()
    trained = load_model(config, trained_run, mesh)
    with open_predictor(config, config.eval, trained_run, trained, mesh) as predictor:
        yield predictor


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp('harness'))


def evaluate(name, tasks, model, **options):
    manager = core_suites._make_task_manager(name, str(tasks[name]))
    return lm_eval.simple_evaluate(
        model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **options
    )


# ---- tokens


def test_bos_stands_before_a_prompt_once(predictor):
    model = lm_harness.HarnessModel(predictor)
    tokenizer = predictor.tokenizer
    plain = tokenizer.encode('Hi <bos> there')
    assert tokenizer.bos_id not in plain
    assert model.tok_encode('Hi <bos> there') == [tokenizer.bos_id, *plain]
    assert model.tok_encode('Hi <bos> there', add_special_tokens=False) == plain
    without = lm_harness.HarnessModel(predictor, add_bos=False)
    assert without.tok_encode('Hi <bos> there') == plain
    assert model.prefix_token_id == tokenizer.bos_id != model.eot_token_id


def test_a_chat_as_a_string_keeps_its_special_tokens(predictor):
    model = lm_harness.HarnessModel(predictor._replace(template='turns'))
    messages = [
        dict(role='system', content='Be <|end|> kind.'),
        dict(role='user', content='Hi \ufdd3 there'),
        dict(role='assistant', content='Well,'),
    ]
    text = model.apply_chat_template(messages[:2])
    clean = [messages[0], dict(role='user', content='Hi \ufffd there')]
    expected = chat_template.encode_prompt(clean, predictor.tokenizer, 'turns')
    assert model.tok_encode(text) == expected
    assert expected.count(predictor.tokenizer.bos_id) == 1
    open_end = model.apply_chat_template(messages, add_generation_prompt=False)
    assert model.tok_encode(open_end) == chat_template.encode_prompt(
        [*clean, messages[2]], predictor.tokenizer, 'turns', continue_last=True
    )
    plain = lm_harness.HarnessModel(predictor).apply_chat_template(messages[1:2])
    assert plain == 'Hi \ufffd there\n\n'


def test_sampling_parameters_of_a_task():
    greedy = dict(until='\n', max_gen_toks=9, do_sample=False, temperature=0.7)
    assert lm_harness.parameters_of(greedy, 64) == SamplingParameters(
        max_tokens=9, temperature=0.0, stop=('\n',)
    )
    drawn = dict(until=['a', ''], do_sample=True, temperature=0.7, top_p=0.9)
    assert lm_harness.parameters_of(drawn, 64) == SamplingParameters(
        max_tokens=32, temperature=0.7, top_p=0.9, stop=('a',)
    )
    with pytest.raises(UserError, match='typical_p, which is not supported'):
        lm_harness.parameters_of(dict(typical_p=0.2), 64)
    with pytest.raises(UserError, match='no beam search'):
        lm_harness.parameters_of(dict(num_beams=4), 64)


# ---- the three kinds of requests


def test_likelihoods_of_choices(predictor, tasks):
    found = evaluate('tiny_choice', tasks, lm_harness.HarnessModel(predictor))
    encode, bos = predictor.tokenizer.encode, predictor.tokenizer.bos_id
    rights = []
    for sample, (question, choices, gold) in zip(
        found['samples']['tiny_choice'], QUESTIONS, strict=True
    ):
        size = len(encode(question))
        encoded = [encode(question + choice) for choice in choices]
        pairs = [([bos, *tokens[:size]], tokens[size:]) for tokens in encoded]
        scores = score_pairs(predictor.score_batch, pairs, 64, 4, 0)
        logprobs = [score.logprob for score in scores]
        scores_given = [float(answer[0]) for answer in sample['filtered_resps']]
        assert scores_given == pytest.approx(logprobs, rel=1e-4)
        rights.append(np.argmax(logprobs) == gold)
    assert found['results']['tiny_choice']['acc,none'] == np.mean(rights)


def test_each_token_of_a_whole_text_is_scored_once(predictor, tasks):
    found = evaluate('tiny_text', tasks, lm_harness.HarnessModel(predictor))
    encode, bos = predictor.tokenizer.encode, predictor.tokenizer.bos_id
    assert len(encode(TEXTS[1])) > 64 > len(encode(TEXTS[0]))
    pairs = [([bos], encode(TEXTS[n])) for n in (0, 2)]
    first, last = score_pairs(predictor.score_batch, pairs, 64, 4, 0)
    samples = found['samples']['tiny_text']
    for sample, score in ((samples[0], first), (samples[2], last)):
        assert sample['filtered_resps'][0] == pytest.approx(score.logprob, rel=1e-4)
    nats = -sum(sample['filtered_resps'][0] for sample in samples)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found['results']['tiny_text']['bits_per_byte,none'] == pytest.approx(
        nats / math.log(2) / size
    )


def test_replies_end_at_the_stop_string_of_the_task(predictor, tasks):
    model = lm_harness.HarnessModel(predictor)
    found = evaluate('tiny_reply', tasks, model, num_fewshot=1)
    samples = found['samples']['tiny_reply']
    prompts = [sample['arguments'][0][0] for sample in samples]
    texts = [sample['filtered_resps'][0] for sample in samples]
    bos = predictor.tokenizer.bos_id
    wanted = SamplingParameters(max_tokens=12, temperature=0.0, stop=('\n',))
    tokens = [[bos, *predictor.tokenizer.encode(prompt)][-52:] for prompt in prompts]
    replies = predictor.complete(tokens, [wanted] * 3)
    assert texts == [reply.text for reply in replies]
    assert all('\n' not in text for text in texts)


def test_a_chat_template_is_applied(predictor, tasks):
    model = lm_harness.HarnessModel(predictor)
    found = evaluate(
        'tiny_reply', tasks, model, apply_chat_template=True, num_fewshot=0
    )
    prompt = found['samples']['tiny_reply'][0]['arguments'][0][0]
    assert prompt == 'How are you\n\n'


# ---- as tasks of eval


def test_tasks_have_intervals_and_chance(predictor, tasks):
    run = find_task(f'lm_eval:{tasks["tiny_choice"]}@0', None)
    (result,) = run(predictor, []).values()
    assert result['kind'] == 'means'
    assert result['settings']['shots'] == {'tiny_choice': 0}
    figure = result['figures']['acc_norm']
    chance = (1 / 3 + 1 / 3 + 1 / 2) / 3
    assert figure['baselines']['chance']['value'] == pytest.approx(chance)
    assert figure['interval'][0] <= figure['value'] <= figure['interval'][1]
    assert result['settings']['requests_cut_from_the_left'] == 0
    ids = [item['id'] for item in result['items']]
    assert ids == ['tiny_choice/0', 'tiny_choice/1', 'tiny_choice/2']
    run = find_task(f'lm_eval:{tasks["tiny_text"]}', None)
    (result,) = run(predictor, []).values()
    assert set(result['figures']) == {'word_perplexity', 'bits_per_byte'}
    low, high = result['figures']['bits_per_byte']['interval']
    assert low < result['figures']['bits_per_byte']['value'] < high


def test_the_mean_above_chance(predictor, tasks, monkeypatch):
    manager = core_suites._make_task_manager('x', str(tasks['tiny_choice']))
    monkeypatch.setattr('lm_eval.tasks.TaskManager', lambda: manager)
    task_of = lambda *fields: core_suites.Task('tiny_choice', *fields)
    monkeypatch.setitem(core_suites.SUITES, 'core', (task_of(0, 0.3), task_of(1, 0.5)))
    found = find_task('core', None)(predictor, [])
    names = ['tiny_choice@0', 'tiny_choice@1']
    assert list(found) == ['core', *names]
    one, other = (found[name]['figures']['acc_norm']['value'] for name in names)
    figure = found['core']['figures']['core']
    assert figure['value'] == pytest.approx(
        ((one - 0.3) / 0.7 + (other - 0.5) / 0.5) / 2
    )
    # In a resample of three examples, between none and all are right.
    least = (-0.3 / 0.7 - 0.5 / 0.5) / 2
    assert least <= figure['interval'][0] < figure['value'] < figure['interval'][1] <= 1


def test_the_tasks_of_the_suites_exist():
    # Reads the files of the installed harness, as building its index takes seconds.
    folder = Path(lm_eval.__file__).parent / 'tasks'
    names = {
        line.split(':', 1)[1].strip()
        for path in folder.rglob('*.y*ml')
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines()
        if line.startswith(('task:', 'group:', '  - task:'))
    }
    for tasks in core_suites.SUITES.values():
        assert {task.name for task in tasks} <= names
        assert all(0 <= task.chance < 1 for task in tasks)
    assert len(core_suites.CORE) == 21 and len(core_suites.CHATCORE) == 5


def test_every_error_is_one_line(trained_run, tasks, tmp_path, capsys, monkeypatch):
    def check_error(name, message):
        assert runs.gptjax('eval', f'--workdir={trained_run}', f'--tasks={name}') == 2
        assert message in capsys.readouterr().err

    (tmp_path / 'nameless.yaml').write_text('dataset_path: json\n')
    check_error('chatcore', 'HF_ALLOW_CODE_EVAL=1')
    check_error(f'lm_eval:{tasks["tiny_text"]}@many', "'many' shots: use a number")
    check_error(f'lm_eval:{tmp_path}/none.yaml', 'none.yaml: no such file')
    check_error(f'lm_eval:{tmp_path}/nameless.yaml', 'has no line `task: NAME`')
    find = importlib.util.find_spec
    without_lm_eval = lambda name: None if name == 'lm_eval' else find(name)
    monkeypatch.setattr(importlib.util, 'find_spec', without_lm_eval)
    check_error('core', 'needs lm-evaluation-harness: pip install lm-eval')


def test_requests_that_are_cut_are_counted(predictor, tasks):
    model = lm_harness.HarnessModel(predictor._replace(context=16))
    evaluate('tiny_choice', tasks, model)
    lengths = [
        len(predictor.tokenizer.encode(question + choice))
        for question, choices, _ in QUESTIONS
        for choice in choices
    ]
    assert 0 < sum(length > 16 for length in lengths) < len(lengths)
    assert model.cut == sum(length > 16 for length in lengths)
