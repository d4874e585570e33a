"""The same tasks through the HTTP server, by the harness's own client."""

import re
import signal
import threading

import pytest

from tests import runs

pytest.importorskip('lm_eval')
pytest.importorskip('tenacity')  # of lm-eval[api]

from gptjax.eval.harness.lm_harness import HarnessModel  # noqa: E402
from tests.eval.harness.test_lm_harness import evaluate, predictor, tasks  # noqa: E402

pytestmark = pytest.mark.slow
__all__ = ['predictor', 'tasks']  # fixtures

ROOM = 62  # tokens that the client may send: 64 less the one that it has drawn, and one


@pytest.fixture(scope='module')
def address(trained_run):
    """Of a server of the run."""
    process = runs.start('serve', f'--workdir={trained_run}', '--port=0')
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        lines = iter(process.stdout.readline, '')
        ready = next((line for line in lines if line.startswith('ready')), '')
        assert ready, process.stderr.read()
        deadline.cancel()
        yield re.search(r'http://\S+:\d+', ready)[0]
    finally:
        deadline.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def through_http(name, tasks, address, trained_run, **options):
    arguments = dict(
        base_url=f'{address}/v1/completions',
        model=trained_run.name,
        max_length=ROOM + 1,
        **options,
    )
    return evaluate(name, tasks, 'local-completions', model_args=arguments)


def answers(found, name):
    return [sample['filtered_resps'] for sample in found['samples'][name]]


def test_choices_score_the_same(predictor, tasks, address, trained_run):
    model = HarnessModel(predictor, add_bos=False, max_length=ROOM - 1)
    ours = evaluate('tiny_choice', tasks, model)
    theirs = through_http('tiny_choice', tasks, address, trained_run)
    assert (
        ours['results']['tiny_choice']['acc,none']
        == (theirs['results']['tiny_choice']['acc,none'])
    )
    for one, other in zip(
        answers(ours, 'tiny_choice'), answers(theirs, 'tiny_choice'), strict=True
    ):
        assert [float(p) for p, _ in one] == pytest.approx(
            [float(p) for p, _ in other], rel=1e-4
        )
        assert [greedy for _, greedy in one] == [greedy for _, greedy in other]
    # The client sends no BOS, and that is a difference which would be seen.
    with_bos = evaluate('tiny_choice', tasks, HarnessModel(predictor))
    assert answers(with_bos, 'tiny_choice') != answers(ours, 'tiny_choice')


def test_whole_texts_score_the_same(predictor, tasks, address, trained_run):
    """Their windows are one token shorter than what they may send."""
    ours = evaluate('tiny_text', tasks, HarnessModel(predictor, max_length=ROOM - 1))
    theirs = through_http('tiny_text', tasks, address, trained_run)
    one, other = (
        [answer for (answer,) in answers(its, 'tiny_text')] for its in (ours, theirs)
    )
    assert one == pytest.approx(other, rel=1e-4)
    for metric in ('bits_per_byte,none', 'word_perplexity,none'):
        assert ours['results']['tiny_text'][metric] == pytest.approx(
            theirs['results']['tiny_text'][metric], rel=1e-4
        )


def test_replies_are_the_same(predictor, tasks, address, trained_run):
    ours = evaluate('tiny_reply', tasks, HarnessModel(predictor, add_bos=False))
    theirs = through_http('tiny_reply', tasks, address, trained_run)
    assert answers(ours, 'tiny_reply') == answers(theirs, 'tiny_reply')
    # Prompts sent as text get their BOS from the server.
    ours = evaluate('tiny_reply', tasks, HarnessModel(predictor))
    theirs = through_http(
        'tiny_reply', tasks, address, trained_run, tokenized_requests=False
    )
    assert answers(ours, 'tiny_reply') == answers(theirs, 'tiny_reply')
