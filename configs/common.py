"""The sections of an experiment, with the defaults of gptjax/core/schema.py.

The schema documents every field, with its default and range. An experiment calls
`base()`, adds the sections that its stage needs, and changes fields.
"""

from functools import partial

from ml_collections import ConfigDict

from gptjax.core import config as core
from gptjax.core import schema


def section(**fields) -> ConfigDict:
    """A section of your own. Setting a field that it does not have is an error."""
    return core.lock(fields)


def source(kind: str, path: str, **fields) -> ConfigDict:
    """One source of documents.

    Args:
        kind: 'tfds', 'text', 'jsonl', 'parquet' or 'chat'.
        path: the name of the dataset for 'tfds', else a file, a folder or a glob,
            local or on `gs://`.
        **fields: other fields of SOURCE in the schema.
    """
    return core.make_section(schema.SOURCE, kind=kind, path=path, **fields)


def base() -> ConfigDict:
    """The sections of every experiment, with defaults that train on any machine."""
    return core.base_config()


def start_section(
    run: str = schema.START['run'].default, step: int = schema.START['step'].default
) -> ConfigDict:
    """The earlier run that a later stage is initialised from."""
    return core.make_section(schema.START, run=run, step=step)


def dialogue_section(**sources: ConfigDict) -> ConfigDict:
    """Conversations for fine-tuning: `source(...)`s of kind 'chat' or 'tfds'."""
    return ConfigDict(dict(sources=sources))


def reward_part(
    function: str,
    weight: float = schema.REWARD_PART['weight'].default,
    run: str = schema.REWARD_PART['run'].default,
    on: str = schema.REWARD_PART['on'].default,
) -> ConfigDict:
    """One reward of the mixture `task.rewards`.

    Args:
        function: a key of REWARDS in gptjax/post/reward_functions.py, 'model' for a
            reward model, or the full name of a function that can be imported.
        weight: the total reward is the sum of weight * reward.
        run: the run directory of a reward model.
        on: the problems that it counts for: 'all', 'answered' or 'open'.
    """
    return ConfigDict(dict(function=function, weight=weight, run=run, on=on))


# The other sections: `common.sft_section(epochs=1.0)` changes one of the defaults.
sft_section = partial(core.make_section, schema.SFT)
lora_section = partial(core.make_section, schema.LORA)
reward_section = partial(core.make_section, schema.REWARD)
preference_section = partial(core.make_section, schema.PREFERENCE)
task_section = partial(core.make_section, schema.TASK)
policy_section = partial(core.make_section, schema.POLICY)
ppo_section = partial(core.make_section, schema.PPO)
grpo_section = partial(core.make_section, schema.GRPO)
select_section = partial(core.make_section, schema.SELECT)
best_of_section = partial(core.make_section, schema.BEST_OF)
overoptimization_section = partial(core.make_section, schema.OVEROPTIMIZATION)
