"""The evaluated model as tasks use it: it scores texts and writes replies.

A prompt that is longer than the model can read loses its first tokens, BOS included:
training rows that begin inside a document have no BOS either. Results count such
prompts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gptjax.core import console
from gptjax.core.config import cache_context
from gptjax.core.hashing import hash_integer
from gptjax.data import chat_template
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.tasks.examples import Example
from gptjax.eval.tasks.likelihood import Scored, make_score_batch, score_pairs
from gptjax.infer.request import Reply, SamplingParameters
from gptjax.train.load_model import Trained, load_engine

PROMPTS_AT_ONCE = 64  # given to the engine in one call; progress shows in between


class Predictor(NamedTuple):
    """A model, and the settings of its evaluation."""

    tokenizer: Any
    template: str  # the chat template's name
    context: int  # in tokens
    score_batch: Callable[[dict], tuple]  # see `make_score_batch`
    complete: Callable[[list[list[int]], list[SamplingParameters]], list[Reply]]
    settings: ConfigDict  # the config's section `eval`

    @property
    def max_reply_tokens(self) -> int:
        return min(self.settings.max_tokens, self.context // 2)

    @property
    def max_prompt_tokens(self) -> int:
        """The part of the context that the longest reply leaves free."""
        return self.context - self.max_reply_tokens

    @property
    def bootstrap_settings(self) -> BootstrapSettings:
        return BootstrapSettings.of(self.settings)

    def encode_prompt(self, prompt: str | Sequence[dict]) -> list[int]:
        """BOS and the tokens of a text; or messages in the chat template."""
        if isinstance(prompt, str):
            return chat_template.encode_text_prompt(prompt, self.tokenizer)
        return chat_template.encode_prompt(list(prompt), self.tokenizer, self.template)

    def score_pairs(self, pairs: Sequence[tuple]) -> list[Scored]:
        """See `likelihood.score_pairs`."""
        batch_size, pad_id = self.settings.batch_size, self.tokenizer.pad_id
        return score_pairs(self.score_batch, pairs, self.context, batch_size, pad_id)


@contextlib.contextmanager
def open_predictor(
    config: ConfigDict, settings: ConfigDict, workdir: Path, trained: Trained, mesh
) -> Iterator[Predictor]:
    """The model of a run. The first reply starts the engine; leaving closes it.

    `settings` is a section `eval`, which may be another run's.
    """
    with contextlib.ExitStack() as stack:
        engines = []

        def complete(prompts, parameters):
            if not engines:
                engine = load_engine(
                    config,
                    workdir,
                    trained.step,
                    slots=settings.batch_size,
                    context=cache_context(
                        trained.settings.context,
                        config.data.context + settings.max_tokens,
                    ),
                )
                engines.append(stack.enter_context(contextlib.closing(engine)))
            return engines[0].complete(prompts, parameters)

        yield Predictor(
            tokenizer=trained.tokenizer,
            template=config.chat.template,
            context=config.data.context,
            score_batch=make_score_batch(trained, mesh),
            complete=complete,
            settings=settings,
        )


def draw_replies(
    predictor: Predictor,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    parameters: SamplingParameters,
) -> list[Reply]:
    """The reply to each prompt; each example has a seed of its own.

    A reply ends at the example's stop strings, or where the chat template ends a turn.
    Its text has the names of other special tokens, so that metrics see them.
    """
    template_stops, stop_tokens = chat_template.stop_conditions(
        predictor.template, predictor.tokenizer
    )
    each_parameters = [
        replace(
            parameters,
            seed=hash_integer(predictor.settings.seed, 'reply', example.id) % 2**32,
            stop=tuple(template_stops if example.stop is None else example.stop),
            stop_tokens=tuple(stop_tokens),
            skip_special_tokens=False,
        )
        for example in examples
    ]
    replies = []
    with console.progress_bar('generating', len(examples), 'replies') as advance:
        for first in range(0, len(examples), PROMPTS_AT_ONCE):
            chunk = slice(first, first + PROMPTS_AT_ONCE)
            replies += predictor.complete(prompts[chunk], each_parameters[chunk])
            advance(len(replies[chunk]))
    return replies
