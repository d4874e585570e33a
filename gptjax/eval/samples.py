"""The stage `sample`: a trained model continues prompts."""

from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import console, storage
from gptjax.core.config import choose_context
from gptjax.core.console import UserError
from gptjax.data.chat_template import encode_text_prompt
from gptjax.infer.request import LARGEST_SEED, ContextOverflow, SamplingParameters
from gptjax.tokenizer.load_tokenizer import find_tokenizer, load_tokenizer
from gptjax.train.load_model import load_engine

SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')  # fields of `sample`


def sample(
    config: ConfigDict,
    workdir: Path,
    prompts: list[str] | None = None,
    seed: int = 0,
    step: int | None = None,
    json_path: Path | None = None,
    context: int | None = None,
) -> list[dict]:
    """Prints and returns a text for each prompt, with the settings that drew it.

    Without `prompts` it takes those of the config, and if `step` is None, the best
    checkpoint, it writes RUN/samples.json, which the report shows. `json_path` is a
    further file: an object for each text (for one text, no list) with the token ids
    `prompt_ids` and `reply_ids` too. An EOS that ended a reply is one of them.
    `context` is the flag, see `choose_context`.
    """
    settings = config.sample
    sampling = {name: settings[name] for name in SAMPLING}
    if not 0 <= seed < LARGEST_SEED:
        raise UserError(f'--seed={seed}: use a number from 0 to {LARGEST_SEED - 1}')
    all_prompts = prompts or settings.prompts
    context = choose_context(
        workdir.name, config.model.context, context, config.data.context
    )
    _check_lengths(config, workdir, all_prompts, context)
    with console.progress_bar('loading the model', 0):
        engine = load_engine(config, workdir, step, slots=1, context=context)
        engine.warm_up()
    texts, ids = [], []
    for number, prompt in enumerate(all_prompts):
        print(f'--- {prompt!r}')
        parameters = SamplingParameters(
            **sampling, max_tokens=settings.max_tokens, seed=seed + number
        )
        text = prompt
        print(prompt, end='', flush=True)
        tokens = encode_text_prompt(prompt, engine.tokenizer)
        reply = []
        for update in engine.reply(tokens, parameters):
            text += update.text
            reply += [token.id for token in update.tokens]
            reply += [update.ending.id] if update.ending else []
            print(update.text, end='', flush=True)
        print()
        provenance = dict(seed=seed + number, step=engine.trained_step, **sampling)
        texts.append(dict(prompt=prompt, text=text, **provenance))
        ids.append(dict(prompt_ids=tokens, reply_ids=reply))
    if not prompts and step is None:
        storage.write_json(workdir / 'samples.json', texts)
    if json_path is not None:
        rows = [text | tokens for text, tokens in zip(texts, ids, strict=True)]
        storage.write_json(json_path, rows[0] if len(rows) == 1 else rows)
    return texts


def _check_lengths(config, workdir, prompts, context):
    """Refuses a prompt that is too long before the model is loaded."""
    if find_tokenizer(workdir / 'tokenizer') is None:
        return  # load_engine names what is missing
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    for prompt in prompts:
        tokens = len(encode_text_prompt(prompt, tokenizer))
        if tokens >= context:
            raise ContextOverflow(tokens, context, config.model.context)
