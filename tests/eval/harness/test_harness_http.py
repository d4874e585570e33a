"""The same tasks through the HTTP server, with the client of the harness."""

import pytest

from tests import servers

pytest.importorskip('lm_eval')
pytest.importorskip('tenacity')  # a requirement of lm-eval[api]

from gptjax.eval.harness.lm_harness import HarnessModel  # noqa: E402
from tests.eval.harness.test_lm_harness import evaluate, predictor, tasks  # noqa: E402

__all__ = ['predictor', 'tasks']  # fixtures

MAX_LENGTH = 61  # the client reserves three of 64 tokens for the reply and itself


@pytest.fixture(scope='module')
def evaluate_by_http(tasks, trained_run):
    """A function from the name of a task to the results of the harness's client."""
    with servers.serving(trained_run) as server:
        arguments = dict(
            base_url=f'{server.address}/v1/completions',
            model=trained_run.name,
            max_length=MAX_LENGTH + 2,
        )
        yield lambda name, **options: evaluate(
            name, tasks, 'local-completions', model_args=dict(arguments, **options)
        )


def replies(found, name):
    return [sample['filtered_resps'] for sample in found['samples'][name]]


def test_choices_score_the_same(predictor, tasks, evaluate_by_http):
    model = HarnessModel(predictor._replace(context=MAX_LENGTH), add_bos=False)
    ours, theirs = (
        evaluate('tiny_choice', tasks, model),
        evaluate_by_http('tiny_choice'),
    )
    accuracies = [
        found['results']['tiny_choice']['acc,none'] for found in (ours, theirs)
    ]
    assert accuracies[0] == accuracies[1]
    our_choices, their_choices = (
        [choice for choices in replies(found, 'tiny_choice') for choice in choices]
        for found in (ours, theirs)
    )
    for (logprob, greedy), (other_logprob, other_greedy) in zip(
        our_choices, their_choices, strict=True
    ):
        assert float(logprob) == pytest.approx(float(other_logprob), rel=1e-4)
        assert greedy == other_greedy
    # The client sends no BOS, and with BOS the scores differ.
    with_bos = evaluate('tiny_choice', tasks, HarnessModel(predictor))
    assert replies(with_bos, 'tiny_choice') != replies(ours, 'tiny_choice')


def test_replies_are_the_same(predictor, tasks, evaluate_by_http):
    # The client sends no BOS with tokens; the server adds it to texts.
    for add_bos in (False, True):
        model = HarnessModel(predictor, add_bos=add_bos)
        ours = evaluate('tiny_reply', tasks, model)
        theirs = evaluate_by_http('tiny_reply', tokenized_requests=not add_bos)
        assert replies(ours, 'tiny_reply') == replies(theirs, 'tiny_reply')
