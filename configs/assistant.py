"""An assistant: each stage starts from one before. `launch/local.sh` runs them all.

    task      configs/assistant.py            runs/base       problems of ten skills
    pretrain  configs/assistant.py            runs/base       text, problems as text
    sft       configs/assistant.py:skills     runs/skills     dialogue and skills
    sft       configs/assistant.py:more       runs/assistant  more of it, from skills
    select    configs/assistant.py:select     runs/replies    right replies of skills
    sft       configs/assistant.py:own        runs/own        learns from these

`own` is rejection sampling. It takes as long as `more` and gives less, as
gptjax/post/README.md shows, so the assistant is that of `more`. The skills are those of
gptjax/post/problems/skills.py.
"""

from configs import common

DEMONSTRATIONS = 'runs/base/task/train.jsonl'
SELECTED = 'runs/replies/selected/chats.jsonl'
# What takes longer to learn is practised more often.
PRACTICE = dict(
    add=3.0,
    subtract=3.0,
    count_letter=2.5,
    compare=2.0,
    reverse=2.0,
    sort=1.2,
    logic=1.0,
    calendar=0.5,
    opposite=0.4,
    capital=0.3,
)
VARIANTS = ('skills', 'more', 'select', 'own')


def get_config(variant: str = ''):
    if variant and variant not in VARIANTS:
        raise ValueError(
            f'configs/assistant.py has no variant {variant!r}: use '
            f'{", ".join(VARIANTS)}, or leave it out'
        )
    config = common.base()
    if not variant:
        return pretrain(config)
    config.start = common.start_section('runs/skills')
    if variant == 'skills':
        config.start.run = 'runs/base'
    config.chat.template = 'turns'
    config.data.context = 0  # that of the model
    if variant == 'select':
        config.task = problems()
        config.select = common.select_section(
            problems=8000, replies=4, max_tokens=12, slots=128
        )
    else:
        fine_tune(config, variant)
    return config


def problems():
    """Problems of the skills; demonstrations of them are text for `pretrain`."""
    task = common.task_section(name='skills', demonstrations=60_000, problems=60_000)
    task.held_out = 400
    task.options = PRACTICE
    return task


def pretrain(config):
    config.task = problems()
    config.tokenizer.vocab_size = 4096
    config.data.sources = dict(
        chitchat=common.source('tfds', 'chitchat', weight=0.7),
        skills=common.source('chat', DEMONSTRATIONS, weight=0.3),
    )
    config.model.unroll = 3
    config.optim.learning_rate = 1e-2
    config.train.update(num_steps=1900, eval_every=475)
    config.checkpoint.every = 475
    return config


def fine_tune(config, variant: str):
    config.sft = common.sft_section(epochs=0.0)
    config.lora = common.lora_section()
    config.dialogue = common.dialogue_section(
        chitchat=common.source('tfds', 'chitchat', weight=0.45),
        chatterbot=common.source('tfds', 'chatterbot/english', weight=0.05),
        skills=common.source('chat', DEMONSTRATIONS, weight=0.5),
    )
    if variant == 'own':
        config.dialogue.sources.skills.weight = 0.2
        config.dialogue.sources.own = common.source('chat', SELECTED, weight=0.3)
    config.optim.update(
        name='muon', learning_rate=3e-3, matrix_learning_rate=1e-2, schedule='linear'
    )
    num_steps = dict(skills=700, more=800, own=450)[variant]
    config.train.update(num_steps=num_steps, batch_size=16, eval_batches=20)
    config.train.eval_every = 350
    # Accuracy rises after the validation loss has begun to rise, so the last checkpoint
    # is kept and not the one with the lowest loss.
    config.checkpoint.update(every=350, keep=1, keep_best=0)
