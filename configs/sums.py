"""A model of sums, pretrained and fine-tuned: the start of a verifiable task.

    python -m gptjax task     --config configs/sums.py     --workdir runs/sums
    python -m gptjax pretrain --config configs/sums.py     --workdir runs/sums
    python -m gptjax sft      --config configs/sums.py:sft --workdir runs/sums_sft

The problems are `chain_sum` of reasoning-gym: two terms of one or two digits. `task`
writes the demonstrations, `pretrain` trains the tokenizer and the model on them, and
`sft` teaches the model to answer and to stop. configs/grpo.py and configs/ppo.py
continue from there. For your own problems, lines {"prompt": …, "answer": …}, add
--config.task.path=FILE to all commands.
"""

from configs import common

DEMONSTRATIONS = 'runs/sums/task/train.jsonl'


def get_config(variant: str = ''):
    if variant not in ('', 'sft'):
        raise ValueError(
            f'configs/sums.py has no variant {variant!r}: use sft, or leave it out'
        )
    config = common.base()
    config.task = common.task_section()
    config.data.clean = ()  # cleaning would mask numbers
    config.data.context = 32  # a prompt has up to 23 tokens, an answer up to 5
    config.tokenizer.vocab_size = 384
    # 406,000 parameters
    config.model.update(
        num_layers=3, width=96, num_heads=3, context=32, unroll=3, num_kv_heads=3
    )
    demonstrations = dict(sums=common.source('chat', DEMONSTRATIONS))
    config.data.sources = demonstrations
    config.train.update(num_steps=400, batch_size=64, eval_every=100, patience=0)
    config.checkpoint.every = 100
    if variant == 'sft':
        config.start = common.start_section('runs/sums')
        config.sft = common.sft_section()
        config.sft.epochs = 0.0
        config.train.update(num_steps=1500, eval_every=300)
        # Accuracy rises long after the validation loss has begun to rise, so the last
        # checkpoint is kept and not the one with the lowest loss.
        config.checkpoint.update(every=300, keep=1, keep_best=0)
        config.lora = common.lora_section()
        config.dialogue = common.dialogue_section(**demonstrations)
        config.chat.template = 'turns'
    return config
