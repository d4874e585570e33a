"""A run as a model of lm-evaluation-harness (the package lm-eval):

    lm_eval.simple_evaluate(model=HarnessModel(predictor), tasks=['arc_easy'])

Every prompt begins with exactly one BOS, also the empty one, if the model has a BOS.
'<bos>' inside a text is encoded as text. The harness passes prompts as strings, so
special tokens of the chat template become Unicode noncharacters, which no text has:

    tokens of '<|user|>Hi<|end|>' → '\\ufdd0Hi\\ufdd1' → the same tokens
"""

import re
from collections.abc import Sequence

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gptjax.core.console import UserError
from gptjax.data import chat_template
from gptjax.eval.tasks.likelihood import count_truncated
from gptjax.eval.tasks.predictor import Predictor
from gptjax.infer.request import SamplingParameters

FIRST_MARK = 0xFDD0  # of 32 noncharacters
LAST_MARK = 0xFDEF
MARKS = re.compile(f'([{chr(FIRST_MARK)}-{chr(LAST_MARK)}])')
DEFAULT_MAX_TOKENS = 256  # if a task sets none; the harness has the same default


class HarnessModel(TemplateLM):
    """The three kinds of requests of the harness.

    Args:
        add_bos: begin prompts with BOS. The harness's own HTTP client does not.
    """

    def __init__(self, predictor: Predictor, add_bos: bool = True):
        super().__init__()
        self.max_length = predictor.context  # tokens that the model reads
        self.predictor = predictor
        self.add_bos = add_bos
        self.cut = 0  # requests so far that were too long and lost tokens
        self._specials = {}  # by their marks, in the order in which prompts use them

    @property
    def eot_token_id(self) -> int:
        return self.predictor.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.predictor.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return f'{self.predictor.tokenizer.fingerprint}-{self.predictor.template}'

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """The tokens of a text, with one BOS before them if wanted."""
        tokens = []
        for part in MARKS.split(string):
            if part in self._specials:
                tokens.append(self._specials[part])
            elif part:
                tokens += self.predictor.tokenizer.encode(part)
        add = self.add_bos if add_special_tokens is None else add_special_tokens
        start = self.predictor.tokenizer.start_ids
        if add and tokens[: len(start)] != start:
            return [*start, *tokens]
        return tokens

    # ---- likelihood

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs,
    ) -> list[tuple[float, bool]]:
        """(ln P, would greedy decoding write it?) of each continuation."""
        pairs = [(context, after) for _, context, after in requests]
        self.cut += count_truncated(pairs, self.max_length)
        answers = [tuple(score) for score in self.predictor.score_pairs(pairs)]
        for (key, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial('loglikelihood', key, answer)
        return answers

    def loglikelihood_rolling(
        self, requests, disable_tqdm: bool = False
    ) -> list[float]:
        """ln P of whole texts, in the windows that the harness makes."""
        texts = [request.args[0] for request in requests]
        pairs, owners = [], []
        for number, text in enumerate(texts):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs += map(make_disjoint_window, windows)
            owners += [number] * (len(pairs) - len(owners))
        totals = [0.0] * len(texts)
        scores = self.predictor.score_pairs(pairs)
        for number, score in zip(owners, scores, strict=True):
            totals[number] += score.logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', (text,), total)
        return totals

    # ---- generation

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Replies. A prompt that leaves no room for the reply loses its beginning."""
        prompts, parameters = [], []
        for request in requests:
            text, arguments = request.args
            own_parameters = parameters_of(arguments, self.max_length)
            room = self.max_length - own_parameters.max_tokens
            tokens = self.tok_encode(text)
            self.cut += len(tokens) > room
            prompts.append(tokens[-room:])
            parameters.append(own_parameters)
        replies = [reply.text for reply in self.predictor.complete(prompts, parameters)]
        for request, reply in zip(requests, replies, strict=True):
            self.cache_hook.add_partial('generate_until', request.args, reply)
        return replies

    # ---- chat

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation in the run's chat template, without BOS."""
        messages = [
            dict(message, content=MARKS.sub('\ufffd', message['content']))
            for message in chat_history
        ]
        tokenizer = self.predictor.tokenizer
        tokens = chat_template.encode_prompt(
            messages,
            tokenizer,
            self.predictor.template,
            continue_last=not add_generation_prompt,
        )
        specials = {*tokenizer.specials.values()}
        text, plain = '', []
        for token in tokens[tokens[:1] == tokenizer.start_ids :]:
            if token in specials:
                text += tokenizer.decode(plain) + self._mark_of(token)
                plain = []
            else:
                plain.append(token)
        return text + tokenizer.decode(plain)

    def _mark_of(self, token: int) -> str:
        for mark, known in self._specials.items():
            if known == token:
                return mark
        mark = chr(FIRST_MARK + len(self._specials))
        if mark > chr(LAST_MARK):
            raise UserError('the chat template has over 32 special tokens')
        self._specials[mark] = token
        return mark


def parameters_of(arguments: dict, max_length: int) -> SamplingParameters:
    """The sampling parameters of a task; replies have at most half of `max_length`."""
    arguments = dict(arguments)
    until = arguments.pop('until', None) or ()
    until = [until] if isinstance(until, str) else until
    limits = [
        arguments.pop(name)
        for name in ('max_gen_toks', 'max_tokens', 'max_new_tokens')
        if name in arguments
    ]
    sampling = arguments.pop('do_sample', None)
    temperature = float(arguments.pop('temperature', 0.0) or 0.0)
    fields = {
        name: arguments.pop(name)
        for name in ('top_p', 'top_k', 'min_p', 'repetition_penalty', 'seed')
        if arguments.get(name) is not None
    }
    if arguments.pop('num_beams', 1) != 1:
        raise UserError(
            '--tasks: a task sets num_beams, but there is no beam search: remove it '
            'from generation_kwargs'
        )
    without_effect = ('stream', 'eos_token_id', 'pad_token_id')
    unknown = sorted(set(arguments) - set(without_effect))
    if unknown:
        raise UserError(
            f'--tasks: a task sets {", ".join(unknown)}, which is not supported: '
            'remove it from generation_kwargs'
        )
    return SamplingParameters(
        max_tokens=min(min(limits, default=DEFAULT_MAX_TOKENS), max_length // 2),
        temperature=0.0 if sampling is False else temperature,
        stop=tuple(text for text in until if text),
        **fields,
    )
