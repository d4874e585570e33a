"""Generated replies and references: known models, prompts, seeds, stops."""

import pytest

from configs import common
from gptjax.eval.tasks.examples import Example, shuffle_references
from gptjax.eval.tasks.generation_task import evaluate_generation
from gptjax.eval.tasks.predictor import Predictor
from gptjax.infer.request import Reply


class Letters:
    """A tokenizer of ASCII: one token per character, after three special tokens."""

    bos_id, eos_id, pad_id = 1, 2, 0
    start_ids, chat_template = [1], None
    specials = {'<bos>': 1}

    def encode(self, text):
        return [3 + byte for byte in text.encode()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, tokens):
        return bytes(token - 3 for token in tokens if token > 2).decode()


def make_predictor(complete, **fields):
    settings = common.base().eval
    settings.update(fields)
    return Predictor(Letters(), 'text', 32, None, complete, settings)


EXAMPLES = [
    Example(f'i{n}', f'question {n}', (f'the answer to it is {n} of {n + 7}',))
    for n in range(70)
]


def evaluate_texts(texts):
    """The results of a model that replies with these texts."""
    texts = iter(texts)

    def complete(prompts, parameters):
        return [Reply(next(texts), (), None, 'stop', None, None) for _ in prompts]

    return evaluate_generation(make_predictor(complete), EXAMPLES, 'x')['figures']


def test_a_model_that_writes_the_reference_is_perfect():
    figures = evaluate_texts(example.references[0] for example in EXAMPLES)
    for name in ('bleu', 'chrf'):
        assert figures[name]['value'] == pytest.approx(100)
    for name in ('rouge1', 'rougeLsum', 'token_f1', 'exact_match'):
        assert figures[name]['value'] == pytest.approx(1)
        assert figures[name]['interval'] == pytest.approx([1, 1])
        baseline = figures[name]['baselines']["another item's reference"]
        assert baseline['value'] < 0.95
    baseline = figures['distinct_2']['baselines']['the references']
    assert baseline['value'] == figures['distinct_2']['value']


def test_a_model_that_writes_other_references_is_as_good_as_its_baseline():
    figures = evaluate_texts(shuffle_references(EXAMPLES, seed=0))
    for name in ('bleu', 'chrf', 'rouge1', 'rougeLsum', 'token_f1', 'exact_match'):
        baseline = figures[name]['baselines']["another item's reference"]
        assert baseline == {k: figures[name][k] for k in ('value', 'interval')}


@pytest.mark.filterwarnings('error')
def test_empty_replies_give_figures_and_no_warning():
    figures = evaluate_texts([''] * len(EXAMPLES))
    assert figures['bleu']['value'] == figures['exact']['value'] == 0
    assert figures['distinct_1']['value'] is None


def test_prompts_seeds_and_stops_of_a_reply():
    seen = []

    def complete(prompts, parameters):
        seen.extend(zip(prompts, parameters, strict=True))
        return [Reply(' ok ', (), None, 'stop', None, None) for _ in prompts]

    examples = [
        Example('a', 'short', ('r',), stop=('\n', 'Q:')),
        Example('b', 'x' * 60, ('r',)),
        Example('c', [dict(role='user', content='Hi')], ('r',)),
    ]
    predictor = make_predictor(complete, max_tokens=99, temperature=0.5, seed=4)
    found = evaluate_generation(predictor, examples, 'x')
    (first, sampling), (second, other_sampling), (third, _) = seen
    encode = Letters().encode
    assert first == [1, *encode('short')] and sampling.stop == ('\n', 'Q:')
    assert second == encode('x' * 16)  # the prompt loses its beginning
    assert other_sampling.stop == ('\n\n',)
    assert third == [1, *encode('Hi\n\n')]
    assert sampling.max_tokens == 16 and sampling.temperature == 0.5
    assert sampling.seed != other_sampling.seed
    assert not sampling.skip_special_tokens  # the metrics receive them
    assert found['settings']['prompts_cut_from_the_left'] == 1
    assert found['items'][0]['reply'] == 'ok'
