"""The stage eval with tasks, on a run of four steps."""

import json
import math

import pytest

from gptjax.core import run_dir
from gptjax.eval import evaluate as stage
from gptjax.eval.held_out_documents import choose_documents, read_documents
from gptjax.eval.tasks import examples
from gptjax.eval.tasks.generation_task import evaluate_generation
from gptjax.eval.tasks.likelihood import score_pairs
from gptjax.eval.tasks.predictor import Predictor, open_predictor
from gptjax.infer.request import Reply
from tests import runs

CHEAP = ('--config=configs/tiny.py', *runs.SHORT[1:], '--config.eval.documents=12')


@pytest.fixture(scope='module')
def workdir(trained_run, tmp_path_factory):
    return runs.copy(trained_run, tmp_path_factory.mktemp('tasks') / 'run')


@pytest.fixture(scope='module')
def evaluated(workdir, tmp_path_factory):
    """(what `eval --json` wrote for three tasks, its other output)."""
    folder = tmp_path_factory.mktemp('files')
    (folder / 'mine.jsonl').write_text(
        '{"prompt": "The sky is ", "choices": ["blue", "a kind of tea"], "answer": 0}\n'
        '{"prompt": [{"role": "user", "content": "Hi!"}], "choices": ["Hey", "No"], '
        '"answer": 1}\n'
    )
    path = folder / 'out' / 'found.json'
    names = f'reply,choice,{folder}/mine.jsonl'
    words = ('eval', *CHEAP, f'--workdir={workdir}', f'--tasks={names}')
    words = (*words, '--max_tokens=8', f'--json={path}')
    output, _ = runs.finish(runs.start(*words))
    return json.loads(path.read_text()), output


def test_the_json_is_that_of_the_run(evaluated, workdir):
    found, _ = evaluated
    assert found == json.loads((workdir / 'eval.json').read_text())
    assert list(found['tasks']) == ['perplexity', 'reply', 'choice', 'mine']
    assert found['results']['documents'] == 12
    assert found['checkpoint_step'] in (2, 4) and len(found['fingerprint']) == 64


def test_every_figure_has_an_interval_and_a_baseline(evaluated):
    found, output = evaluated
    for name, task in found['tasks'].items():
        assert task['bootstrap'] == dict(resamples=1000, level=0.95, seed=0)
        for figure, its in task['figures'].items():
            low, high = its['interval']
            assert low <= its['value'] * (1 + 1e-12) + 1e-12, (name, figure)
            assert its['value'] <= high * (1 + 1e-12) + 1e-12, (name, figure)
            assert its['baselines'], (name, figure)
    for word in ('bits per byte', 'BLEU', 'chrF', 'ROUGE-Lsum', 'distinct-2', 'chance'):
        assert word in output


def test_perplexity_has_its_intervals_by_source(evaluated):
    results = evaluated[0]['results']
    for figures in (results, results['by_source']['chitchat']):
        for name in ('bits_per_byte', 'token_perplexity', 'word_perplexity', 'loss'):
            low, high = figures['intervals'][name]
            assert low < figures[name] < high
    task = evaluated[0]['tasks']['perplexity']
    beside = task['figures']['bits_per_byte']['baselines']
    # The same frequencies as in the totals, there with their ends of documents.
    assert beside['token frequencies']['value'] == pytest.approx(
        evaluated[0]['baselines']['bits_per_byte']['token_unigram'], rel=1e-6
    )
    columns = dict(zip(task['columns'], zip(*(i['statistics'] for i in task['items']),
                                            strict=True), strict=True))  # fmt: skip
    bits = sum(columns['nats']) / math.log(2) / sum(columns['bytes'])
    assert bits == pytest.approx(results['bits_per_byte'])


def test_what_was_asked_is_in_the_result(evaluated, workdir):
    found, _ = evaluated
    reply = found['tasks']['reply']
    assert reply['settings']['max_tokens'] == 8 and reply['settings']['seed'] == 0
    assert reply['settings']['prompt_tokens_at_most'] == 64 - 8
    documents = read_documents(workdir / 'documents' / 'validation.jsonl')
    documents = choose_documents(documents, 12)
    asked = examples.reply_examples(documents, 200, seed=0)
    assert [i['prompt_sha256'] for i in reply['items']] == [
        item.identity()['prompt_sha256'] for item in asked
    ]
    assert [i['references'] for i in reply['items']] == [[*i.references] for i in asked]
    assert (
        len(reply['prompts_sha256']) == 64 and 'tok:13a' in reply['signatures']['bleu']
    )
    assert found['tasks']['mine']['items'][0]['id'] == 'mine.jsonl:1'


def test_choices_are_scored_by_their_likelihood(evaluated, workdir):
    from gptjax.parallel.mesh import make_mesh
    from gptjax.train.load_model import load
    from tests.helpers import mesh_of

    config = run_dir.read_config(workdir)
    config.mesh.data = 1
    mesh = mesh_of()
    trained = load(config, workdir, mesh)
    encode = trained.tokenizer.encode
    # The space at the prompt's end goes with the choice.
    before = [trained.tokenizer.bos_id, *encode('The sky is')]
    with open_predictor(config, config.eval, workdir, trained, mesh) as predictor:
        (score,) = score_pairs(
            predictor.score_batch, [(before, encode(' blue'))], 64, 2, 0
        )
    found = evaluated[0]['tasks']['mine']['items'][0]['logprobs'][0]
    assert found == pytest.approx(score.logprob, rel=1e-4)
    assert make_mesh(config.mesh, mesh.devices.ravel()).size == 1


@pytest.mark.slow
def test_the_same_call_finds_the_same_and_keeps_what_was_found(evaluated, workdir):
    before = evaluated[0]
    config = run_dir.read_config(workdir)
    config.eval.update(documents=12, max_tokens=8)
    found = stage.evaluate(config, workdir, 'reply', workdir / 'copy.json')
    assert found['results'] == before['results']  # kept, not measured again
    assert list(found['tasks']) == list(before['tasks'])
    copied = json.loads((workdir / 'copy.json').read_text())
    assert copied == dict(found, tasks=dict(reply=found['tasks']['reply']))
    # Another number of devices, here and there: replies are the same.
    replies = [
        [item['reply'] for item in its['tasks']['reply']['items']]
        for its in (found, before)
    ]
    assert replies[0] == replies[1]


# ---- without a model


class Letters:
    """A tokenizer of ASCII: one token a character, after three specials."""

    bos_id, eos_id, pad_id = 1, 2, 0
    specials = {'<bos>': 1}

    def encode(self, text):
        return [3 + byte for byte in text.encode()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, tokens):
        return bytes(token - 3 for token in tokens if token > 2).decode()


def make_predictor(complete, **fields):
    settings = runs_config().eval
    settings.update(fields)
    return Predictor(Letters(), 'text', 32, None, complete, settings)


def runs_config():
    from configs import common

    return common.base()


def asked(count):
    return [
        examples.Example(
            f'i{n}', f'question {n}', (f'the answer to it is {n} of {n + 7}',)
        )
        for n in range(count)
    ]


def answering(texts):
    def complete(prompts, parameters):
        return [Reply(next(texts), (), None, 'stop', None, None) for _ in prompts]

    return complete


def test_a_model_that_writes_the_reference_is_perfect():
    its = asked(70)
    predictor = make_predictor(answering(item.references[0] for item in its))
    figures = evaluate_generation(predictor, its, 'x')['figures']
    for name in ('bleu', 'chrf'):
        assert figures[name]['value'] == pytest.approx(100)
    for name in ('rouge1', 'rougeLsum', 'token_f1', 'exact_match'):
        assert figures[name]['value'] == pytest.approx(1)
        assert figures[name]['interval'] == pytest.approx([1, 1])
        beside = figures[name]['baselines']["another item's reference"]
        assert beside['value'] < 0.95
    beside = figures['distinct_2']['baselines']['the references']
    assert beside['value'] == figures['distinct_2']['value']


def test_a_model_that_writes_other_references_is_as_good_as_its_baseline():
    its = asked(70)
    others = examples.shuffle_references(its, seed=0)
    predictor = make_predictor(answering(iter(others)))
    figures = evaluate_generation(predictor, its, 'x')['figures']
    for name in ('bleu', 'chrf', 'rouge1', 'rougeLsum', 'token_f1', 'exact_match'):
        beside = figures[name]['baselines']["another item's reference"]
        assert beside == {k: figures[name][k] for k in ('value', 'interval')}


def test_prompts_seeds_and_stops_of_a_reply():
    seen = []

    def complete(prompts, parameters):
        seen.extend(zip(prompts, parameters, strict=True))
        return [Reply(' ok ', (), None, 'stop', None, None) for _ in prompts]

    its = [
        examples.Example('a', 'short', ('r',), stop=('\n', 'Q:')),
        examples.Example('b', 'x' * 60, ('r',)),
        examples.Example('c', [dict(role='user', content='Hi')], ('r',)),
    ]
    predictor = make_predictor(complete, max_tokens=99, temperature=0.5, seed=4)
    found = evaluate_generation(predictor, its, 'x')
    (first, how), (second, other), (third, _) = seen
    encode = Letters().encode
    assert first == [1, *encode('short')] and how.stop == ('\n', 'Q:')
    assert second == encode('x' * 16) and other.stop == ('\n\n',)  # its beginning goes
    assert third == [1, *encode('Hi\n\n')]
    assert how.max_tokens == 16 and how.temperature == 0.5  # half of the context
    assert how.seed != other.seed
    assert found['settings']['prompts_cut_from_the_left'] == 1
    assert found['items'][0]['reply'] == 'ok'


def error_of(capsys, *words):
    assert runs.gptjax('eval', *words) == 2
    return capsys.readouterr().err


def test_tasks_that_do_not_exist_are_refused_before_the_model_is_read(
    tmp_path, trained_run, capsys
):
    place = f'--workdir={trained_run}'
    assert '--tasks=speling: no such task: use perplexity, reply' in error_of(
        capsys, place, '--tasks=reply,speling'
    )
    assert 'none.jsonl: No such file' in error_of(
        capsys, place, f'--tasks={tmp_path}/none.jsonl'
    )
    assert '--tasks is empty' in error_of(capsys, place, '--tasks=,')
    assert "two are called 'a'" in error_of(capsys, place, '--tasks=x/a.jsonl,a.jsonl')
    assert 'name another file' in error_of(capsys, place, '--step=2')
    assert 'is a folder' in error_of(capsys, place, f'--json={tmp_path}')
    assert not (trained_run / 'eval.json').exists()
