"""The stage `check`: shows what a stage would train on, and trains nothing."""

from collections.abc import Sequence

from gptjax.command_line import FLAGS
from gptjax.core import run_dir
from gptjax.core.console import UserError, accept_any_text
from gptjax.open_run import given_workdir, open_training

# The stage of a config, by the section that only this stage reads.
STAGE_OF = dict(grpo='grpo', ppo='ppo', preference='dpo', reward='reward', sft='sft')


def run_check(words: Sequence[str]) -> None:
    """Makes what a stage makes of its data, and prints what it would train on."""
    stage = FLAGS.stage or choose_stage()
    _, config, workdir = open_training(stage, words)
    from gptjax.eval import training_examples

    accept_any_text()
    training_examples.SHOW[stage](config, workdir)
    print(f'check: nothing found that would ruin `{stage}`; nothing is trained yet')


def choose_stage() -> str:
    """The stage that the config is for."""
    config, workdir = FLAGS.config, given_workdir()
    if config is None:
        if not workdir:
            raise UserError('--config is missing: name the config of the stage')
        config = run_dir.read_config(workdir)
    stages = [stage for section, stage in STAGE_OF.items() if section in config]
    if len(stages) > 1:
        raise UserError(
            f'--stage is missing: the config is for {" and ".join(stages)}: name one'
        )
    return stages[0] if stages else 'pretrain'
