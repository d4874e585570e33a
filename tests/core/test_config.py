"""The context in use: the flag --context, and what holds without it."""

import pytest

from gptjax.core import config as core
from gptjax.core import schema
from gptjax.core.console import UserError


def test_the_context_is_the_models_up_to_a_limit(capsys):
    limit = schema.DEFAULT_CONTEXT
    for longest in (2, 128, limit):  # as if there were no limit
        assert core.choose_context('tiny', longest, None) == longest
        assert core.cache_context(longest, 1) == longest
        assert capsys.readouterr().err == ''
    assert core.choose_context('llama', 131_072, None) == limit
    assert capsys.readouterr().err == (
        'llama: the context has 4,096 of 131,072 tokens: use --context=N for more, '
        'which takes more memory\n'
    )
    for flag in (2, limit + 1, 131_072):
        assert core.choose_context('llama', 131_072, flag) == flag
    for flag in (-1, 0, 1, 131_073):
        with pytest.raises(UserError, match=f'^--context={flag}: llama has 131072'):
            core.choose_context('llama', 131_072, flag)
    assert core.choose_context('dapo', 131_072, None, known=22_528) == 22_528
    for needed, cache in ((1, 128), (300, 384), (384, 384), (131_071, 131_072)):
        assert core.cache_context(131_072, needed) == cache
    assert core.cache_context(5000, 4999) == 5000
    assert core.default_context(131_072, 8192) == 8192  # longer rows worked before
    assert core.default_context(8192, 131_072) == 8192
