"""An assistant with skills whose answers a program can check, stage by stage.

    with --config configs/assistant.py:VARIANT

    task      :pretrain --workdir runs/base        drills, which `pretrain` reads
    pretrain  :pretrain --workdir runs/base
    task      :problems --workdir runs/problems    demonstrations, held-out problems
    sft       :sft      --workdir runs/taught      talk and demonstrations
    select    :select   --workdir runs/replies     right replies to further problems
    sft       :improve  --workdir runs/assistant   learns from these
    grpo      :grpo     --workdir runs/assistant_grpo   or by reinforcement learning

The skills are those of gptjax/post/problems/skills.py. `improve` is rejection sampling:
fine-tuning on the model's own right replies. Its control is the variant `more`, which
is fine-tuned on the demonstrations for as long.
"""

from configs import common, problems

DRILLS = 'runs/base/task/train.jsonl'
DEMONSTRATIONS = 'runs/problems/task/train.jsonl'
SELECTED = 'runs/replies/selected/chats.jsonl'
# Skills that take longer to learn are practised more often.
PRACTICE = dict(
    add=3.0,
    subtract=1.5,
    count_letter=1.5,
    logic=1.5,
    compare=0.7,
    reverse=0.6,
    sort=0.6,
)
VARIANTS = ('pretrain', 'problems', 'sft', 'select', 'improve', 'more', 'grpo')


def get_config(variant: str = 'pretrain'):
    if variant and variant not in VARIANTS:
        raise ValueError(
            f'configs/assistant.py has no variant {variant!r}: use '
            f'{", ".join(VARIANTS)}'
        )
    config = common.base()
    config.chat.template = 'turns'
    if variant in ('', 'pretrain'):
        return pretrain(config)
    config.data.context = 0  # that of the model
    config.start = common.start_section('runs/taught')
    if variant in ('problems', 'select', 'grpo'):
        config.task = common.task_section(
            name='skills', demonstrations=4000, problems=20_000
        )
        config.task.options = {}  # all skills equally often
    if variant == 'select':
        config.select = common.select_section(max_tokens=12, problems=6000, slots=128)
    elif variant == 'grpo':
        grpo(config)
    elif variant != 'problems':
        fine_tune(config, variant)
    return config


def pretrain(config):
    """Drills and the text of chitchat."""
    config.chat.template = 'text'
    config.task = common.task_section(name='drills', demonstrations=60_000)
    config.task.update(problems=60_000, options=PRACTICE)
    config.tokenizer.vocab_size = 4096
    config.data.sources = dict(
        chitchat=common.source('tfds', 'chitchat', weight=0.6),
        drills=common.source('chat', DRILLS, weight=0.4),
    )
    config.model.unroll = 3
    config.optim.learning_rate = 1e-2
    config.train.update(num_steps=2000, eval_every=400)
    config.checkpoint.every = 400
    return config


def fine_tune(config, variant: str):
    """Talk and answers: demonstrations, and for `improve` the model's own replies."""
    config.sft = common.sft_section(epochs=0.0)
    config.lora = common.lora_section()
    config.dialogue = common.dialogue_section(
        chitchat=common.source('tfds', 'chitchat', weight=0.4),
        chatterbot=common.source('tfds', 'chatterbot/english', weight=0.05),
        skills=common.source('chat', DEMONSTRATIONS, weight=0.55),
    )
    if variant == 'sft':
        config.start.run = 'runs/base'
    if variant == 'improve':
        config.dialogue.sources.skills.weight = 0.15
        config.dialogue.sources.own = common.source('chat', SELECTED, weight=0.4)
    config.optim.update(
        name='muon',
        learning_rate=3e-3,
        matrix_learning_rate=1e-2,
        schedule='linear',
        warmup_steps=20,
    )
    config.train.update(num_steps=600, eval_every=300, batch_size=16, eval_batches=20)
    # Accuracy rises after the validation loss has begun to rise, as for sums.
    config.checkpoint.update(every=300, keep=1, keep_best=0)


def grpo(config):
    """Reinforcement learning against the verifier."""
    config.lora = common.lora_section()
    config.policy = common.policy_section(
        prompts=64, replies=8, max_tokens=12, slots=128
    )
    config.grpo = common.grpo_section()
    config.optim.update(problems.POLICY_OPTIMIZER)
    config.optim.update(learning_rate=1e-3, matrix_learning_rate=5e-3)
    config.train.update(num_steps=80, batch_size=256, eval_every=20)
    config.checkpoint.every = 20
