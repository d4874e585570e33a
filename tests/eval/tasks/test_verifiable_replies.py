"""Held-out problems: accuracy of greedy and sampled replies, and pass@8."""

import itertools
import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.eval.tasks.predictor import Predictor
from gptjax.eval.tasks.verifiable_replies import (
    NAME,
    evaluate_problems,
    find_problem_task,
    pass_at,
)
from gptjax.infer.request import Reply, Token
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.rollout import PromptFormat


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for drawn, right in ((8, 0), (8, 1), (10, 3), (12, 12), (9, 2)):
        replies = [1] * right + [0] * (drawn - right)
        subsets = list(itertools.combinations(replies, 8))
        expected = sum(map(any, subsets)) / len(subsets)
        assert pass_at(8, drawn, right) == pytest.approx(expected, rel=1e-12)
    assert pass_at(1, 8, 2) == pytest.approx(0.25)


class Letters:
    """A tokenizer that only encodes prompts."""

    pad_id, bos_id, eos_id = 0, 1, 2
    start_ids, chat_template = [1], None
    specials = {'<|user|>': 3, '<|assistant|>': 4, '<|end|>': 5, '<|system|>': 6}

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def test_figures_of_a_model_that_is_sometimes_right():
    problems = [
        Problem(f'p{n}', (dict(role='user', content=str(n)),), str(n)) for n in range(4)
    ]
    requests = []

    def complete(prompts, parameters):
        """Right are greedy replies to '0' and two of eight sampled replies to '1'."""
        replies = []
        for prompt, parameter in zip(prompts, parameters, strict=True):
            problem = chr(prompt[2])
            requests.append((problem, parameter.temperature, parameter.seed))
            num_drawn = sum(name == problem and t > 0 for name, t, _ in requests)
            greedy = parameter.temperature == 0
            right = problem == '0' if greedy else problem == '1' and num_drawn <= 2
            ending = None if problem == '3' else Token(5)
            finish = 'length' if problem == '3' else 'stop'
            replies.append(
                Reply(problem if right else 'no', (), None, finish, None, ending)
            )
        return replies

    config = common.base()
    config.task = common.task_section()
    predictor = Predictor(Letters(), 'turns', 16, None, complete, config.eval)
    prompt_format = PromptFormat(Letters(), 'turns', 16, 4, 1.0)
    evaluate = lambda score: evaluate_problems(
        predictor, prompt_format, problems, score, config.task, commonest='2'
    )
    found = evaluate(lambda problem, text: float(text == problem.answer))
    values = {name: figure['value'] for name, figure in found['figures'].items()}
    assert values == dict(
        accuracy=0.25, accuracy_drawn=2 / 32, pass_at_8=0.25, stops=0.75
    )
    baselines = found['figures']['accuracy']['baselines']
    assert baselines["always '2'"]['value'] == 0.25
    low, high = found['figures']['accuracy']['interval']
    assert 0 <= low < 0.25 < high <= 1
    seeds = [seed for _, temperature, seed in requests if temperature]
    assert len(set(seeds)) == len(seeds) == 32
    with pytest.raises(UserError, match='the verifier raised ZeroDivisionError.* p0'):
        evaluate(lambda problem, text: 1 / 0)


def test_problems_that_are_longer_than_the_context_are_left_out(tmp_path):
    problems = [dict(prompt=f'{n:02d}', answer='1') for n in range(60)]
    problems += [dict(prompt=f'{n}: this is too long', answer='1') for n in range(60)]
    path = tmp_path / 'problems.jsonl'
    path.write_text(''.join(json.dumps(problem) + '\n' for problem in problems))
    config = common.base()
    config.task = common.task_section()
    config.task.path = str(path)
    prompts_read = set()

    def complete(prompts, parameters):
        prompts_read.update(map(tuple, prompts))
        return [Reply('1', (), None, 'stop', None, Token(5)) for _ in prompts]

    settings, context = config.eval, 16
    assert settings.max_tokens > context
    predictor = Predictor(Letters(), 'turns', context, None, complete, settings)
    found = find_problem_task('task', config)(predictor, None)[NAME]
    assert found['figures']['accuracy']['value'] == 1
    assert len(prompts_read) == len(found['items']) > 0
    assert max(map(len, prompts_read)) < context


def test_runs_without_problems_or_with_too_few_samples():
    config = common.base()
    with pytest.raises(UserError, match='no section task: .*--tasks=task:runs/sums'):
        find_problem_task('task', config)
    config.task = common.task_section()
    config.task.samples = 4
    with pytest.raises(UserError, match='task.samples=4 is too few.* at least 8'):
        find_problem_task('task', config)
