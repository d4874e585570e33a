"""The sections of an experiment, with the defaults of gptjax/core/schema.py.

Every field, its default, its range and a line on what it does stand there. An
experiment calls `base()` and changes fields; it never inherits. The other functions
here return sections that several experiments share.
"""

from ml_collections import ConfigDict

from gptjax.core import config as core
from gptjax.core import schema


def section(**fields) -> ConfigDict:
    """A section of a config; to change a field that it does not have is an error.

    What is nested in it has names of the user's own, and takes new ones.
    """
    return core.lock(fields)


def source(kind: str, path: str, **fields) -> ConfigDict:
    """One source of documents.

    Args:
        kind: 'tfds', 'text', 'jsonl', 'parquet' or 'chat'.
        path: the TFDS builder's name for 'tfds', else a file, a folder or a
            glob, local or on `gs://`.
        **fields: any others of SOURCE in the schema.
    """
    return core.make_section(schema.SOURCE, kind=kind, path=path, **fields)


def base() -> ConfigDict:
    """The fields of every experiment, with defaults that train anywhere."""
    return core.base_config()


def start_section(
    run: str = schema.START['run'].default, step: int = schema.START['step'].default
) -> ConfigDict:
    """The earlier run that a later stage begins with."""
    return core.make_section(schema.START, run=run, step=step)


def dialogue_section(**sources: ConfigDict) -> ConfigDict:
    """Conversations to fine-tune on: `source(...)` of kind 'chat' or 'tfds' each."""
    return ConfigDict(dict(sources=sources))


def sft_section() -> ConfigDict:
    """Supervised fine-tuning."""
    return core.make_section(schema.SFT)


def lora_section() -> ConfigDict:
    """Low-rank adaptation."""
    return core.make_section(schema.LORA)


def reward_part(
    function: str,
    weight: float = schema.REWARD_PART['weight'].default,
    run: str = schema.REWARD_PART['run'].default,
) -> ConfigDict:
    """One reward of the mixture `task.rewards`.

    Args:
        function: a name in REWARDS of gptjax/post/reward_functions.py, 'model' for a
            reward model, or the full name of a function that can be imported.
        weight: the total reward is the sum of weight x reward.
        run: the run directory of a reward model.
    """
    return ConfigDict(dict(function=function, weight=weight, run=run))


def task_section() -> ConfigDict:
    """Problems that replies are judged on."""
    return core.make_section(schema.TASK)


def policy_section() -> ConfigDict:
    """What PPO and GRPO have in common: rollouts and how they are trained on."""
    return core.make_section(schema.POLICY)


def ppo_section() -> ConfigDict:
    """Proximal policy optimisation."""
    return core.make_section(schema.PPO)


def grpo_section() -> ConfigDict:
    """Group-relative policy optimisation and its kin."""
    return core.make_section(schema.GRPO)


def reward_section() -> ConfigDict:
    """A reward model, and the ratings or preferences that it learns from."""
    return core.make_section(schema.REWARD)


def preference_section() -> ConfigDict:
    """Learning from preferences directly, by DPO and its kin."""
    return core.make_section(schema.PREFERENCE)


def select_section() -> ConfigDict:
    """Training data from a model's own replies: rejection sampling and pairs."""
    return core.make_section(schema.SELECT)


def best_of_section() -> ConfigDict:
    """Best-of-n: the reply of n that a reward likes best, judged by another."""
    return core.make_section(schema.BEST_OF)


def overoptimization_section() -> ConfigDict:
    """A proxy reward, optimised by best-of-n and by PPO, judged by `best_of.judge`."""
    return core.make_section(schema.OVEROPTIMIZATION)
