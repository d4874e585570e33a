"""A model of sums from nothing: the verifiable task's first two stages.

    python -m gptjax task     --config configs/sums.py     --workdir runs/sums
    python -m gptjax pretrain --config configs/sums.py     --workdir runs/sums
    python -m gptjax sft      --config configs/sums.py:sft --workdir runs/sums_sft

`chain_sum` of reasoning-gym, two terms of one or two digits. The first stage writes
the demonstrations, the second learns tokens and text from them, the third to answer
and to stop; configs/grpo.py and configs/ppo.py go on from there. Problems of your own
({"prompt": …, "answer": …} a line): --config.task.path=FILE in all of them.
"""

from configs import common

DEMONSTRATIONS = 'runs/sums/task/train.jsonl'


def get_config(variant: str = ''):
    if variant not in ('', 'sft'):
        raise ValueError(
            f'configs/sums.py has no variant {variant!r}: use sft, or none'
        )
    config = common.base()
    config.task = common.task_section()
    config.data.clean = ()  # numbers are not to be masked
    config.data.context = 32  # a prompt has 23 tokens at most, an answer 5
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
        # Sums come right long after the loss of the wrong ones has begun to rise: the
        # last weights go on, not those with the lowest loss.
        config.checkpoint.update(every=300, keep=1, keep_best=0)
        config.lora = common.lora_section()
        config.dialogue = common.dialogue_section(**demonstrations)
        config.chat.template = 'turns'
    return config
