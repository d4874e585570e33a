"""Packed rows and greedy replies are those of `transformers`, for each family."""

import numpy as np
import pytest

from gptjax.convert.hf_folder import Folder
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt
from tests.convert.test_families import MODELS, read_params, saved  # noqa: F401
from tests.infer import engines

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Longer than the windows of 5, and than the 16 tokens of `phi3_long` that would have
# the factors of short texts.
LENGTHS = 17, 26, 19
MAIN = 'gpt2 pythia llama mistral qwen2 qwen3 gemma2 gemma3 olmo2 phi3'.split()
CASES = [
    pytest.param(name, marks=() if name in MAIN else pytest.mark.slow)
    for name in MODELS
]


@pytest.fixture(scope='module')
def both(saved):  # noqa: F811
    """(the model of `transformers`, our settings, our parameters, documents)."""
    folder = Folder(saved[0])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        saved[0], attn_implementation='eager'
    ).eval()
    rng = np.random.default_rng(2)
    documents = [rng.integers(3, 50, length) for length in LENGTHS]
    return theirs, folder.settings, read_params(folder), documents


@pytest.mark.parametrize('saved', CASES, indirect=True)
def test_documents_of_a_packed_row_have_the_logits_of_each_alone(both):
    theirs, settings, params, documents = both
    row_T = np.concatenate(documents)[None]
    segments_T = np.repeat(np.arange(1, 1 + len(LENGTHS)), LENGTHS)[None]
    positions_T = np.concatenate([np.arange(length) for length in LENGTHS])[None]
    ours_TV = gpt.bind(settings, params)(row_T, segments_T, positions_T)[0]
    with torch.no_grad():
        alone = [theirs(torch.tensor(d)[None]).logits[0].numpy() for d in documents]
    alone_TV = np.concatenate(alone)
    scale = np.abs(alone_TV).max()
    np.testing.assert_allclose(ours_TV, alone_TV, atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize('saved', CASES, indirect=True)
def test_greedy_replies_equal_generate(both):
    """Both decode with a cache; our prompts are of several chunks and share a batch.

    Without a penalty some of these models repeat one token. The two best scores of any
    step differ by more than 3e-4, some thirty times the rounding of a logit.
    """
    theirs, settings, params, prompts = both
    tokenizer = engines.tokenizer()
    tokenizer.eos_ids = ()
    theirs.generation_config.eos_token_id = None
    engine = Engine(settings, params, tokenizer, slots=3, chunk=8)
    for penalty in (1.0, 4.0):
        parameters = SamplingParameters(
            temperature=0.0, max_tokens=24, repetition_penalty=penalty
        )
        replies = engine.complete(prompts, parameters)
        for prompt, reply in zip(prompts, replies, strict=True):
            whole = theirs.generate(
                torch.tensor(prompt)[None],
                max_new_tokens=24,
                do_sample=False,
                repetition_penalty=penalty,
            )
            assert engines.ids(reply) == whole[0, len(prompt) :].tolist()
