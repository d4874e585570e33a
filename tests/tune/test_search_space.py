"""The text of --space is parsed, never run, and checked against the schema."""

import pytest

from gptjax.core.console import UserError
from gptjax.tune.search_space import Dimension, check_grid, parse_space

README = (
    'optim.learning_rate=log(1e-4,1e-1);model.width=choice(128,192,256);'
    'optim.warmup_steps=int(5,50)'
)


def test_what_is_parsed():
    assert parse_space(README) == [
        Dimension('optim.learning_rate', 'log', (1e-4, 1e-1)),
        Dimension('model.width', 'choice', (128, 192, 256)),
        Dimension('optim.warmup_steps', 'int', (5, 50)),
    ]
    name, weight, clean = parse_space(
        'optim.name=choice(adamw, "muon"); data.sources.mine.weight=uniform(0,1); '
        'data.clean=choice(["drop_short"], [])'
    )
    assert name.values == ('adamw', 'muon') and weight.values == (0.0, 1.0)
    assert clean.choices() == {"('drop_short',)": ('drop_short',), '()': ()}


def test_grids():
    grid = parse_space(
        'optim.learning_rate=log(1e-4,1e-2,3); model.width=int(64,200,64)'
    )
    assert grid[0].grid() == [1e-4, pytest.approx(1e-3), 1e-2]
    assert grid[1].grid() == [64, 128, 192] and check_grid(grid, 'grid') == 9
    with pytest.raises(UserError, match=r'optim.learning_rate=.*only --sampler=grid'):
        check_grid(grid, 'tpe')
    with pytest.raises(
        UserError, match=r'optim.warmup_steps=.*\(5,50,5\)|learning_rate'
    ):
        check_grid(parse_space(README), 'grid')


@pytest.mark.parametrize(
    'space, message',
    (
        ('', '--space is empty'),
        ('x', "'x' has no range"),
        ('optm.learning_rate=log(1,2)', 'no such field: use optim.learning_rate, or'),
        ('optim.learningrate=log(1,2)', 'no such field: use optim.learning_rate, or'),
        ('optim=log(1,2)', 'optim is a section'),
        ('data.sources=choice(a,b)', 'data.sources is a section'),
        ('optim.learning_rate=log(1e-1,1e-4)', 'the range is empty'),
        ('optim.learning_rate=log(2,2)', 'the range is empty'),
        ('optim.warmup_steps=int(5,50,100)', 'the range is empty'),
        ('optim.learning_rate=log(0,1)', 'starts above 0'),
        ('optim.learning_rate=log(-1,1)', '-1: use 0 or a positive number'),
        ('optim.learning_rate=log(1,1e999)', 'inf: use 0 or a positive number'),
        ('optim.learning_rate=log(1)', 'a range has two ends'),
        ('optim.learning_rate=log(1,2,0)', 'a whole number of at least 2'),
        ('model.width=log(1,2)', 'a whole number: use int or logint'),
        ('model.width=choice(64,1.5)', '1.5: use a whole number'),
        ('model.width=choice(64)', 'at least two choices'),
        ('model.width=choice(64,64)', 'at least two choices, each once'),
        ('optim.name=log(1,2)', 'a text: use choice'),
        ('optim.schedule=choice(wsd,foo)', "'foo': use one of constant"),
        ('seed=int(0,4);seed=int(0,4)', 'seed is there twice'),
        ('optim.learning_rate=log(', 'this is no range'),
        ('optim.learning_rate=__import__("os").abort()', 'this is no range'),
        ('optim.learning_rate=log(abs(-1),2)', 'this is no range'),
        ('optim.learning_rate=exp(1,2)', 'use one of log, uniform'),
    ),
)
def test_what_is_refused(space, message):
    with pytest.raises(UserError) as error:
        parse_space(space)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert space.split('=')[0] in str(error.value)
