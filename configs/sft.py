"""Supervised fine-tuning on dialogue: a pretrained model learns to answer and to stop.

    python -m gptjax sft --config configs/sft.py --workdir runs/sft
    python -m gptjax sft --config configs/sft.py:chat=mine.jsonl --workdir runs/mine

The model is initialised from runs/base; --config.start.run=RUN names another run.
The variant `chat=PATH` replaces chitchat and chatterbot by your own conversations: a
file, a folder or a glob of JSON Lines or Parquet, or a folder of `save_to_disk`, with
{"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", …}]}.
Other forms are in gptjax/data/README.md. `check` in place of `sft` shows what is
learned.

--config.lora.rank=8 trains only LoRA adapters. Adapters cannot teach a model special
tokens that it has never seen: initialise from a fine-tuned run, or add
--config.chat.template=text.
"""

from configs import common


def get_config(variant: str = ''):
    config = common.base()
    config.start = common.start_section('runs/base')
    config.sft = common.sft_section()
    config.lora = common.lora_section()
    config.chat.template = 'turns'
    config.data.context = 0  # that of the model
    config.dialogue = common.dialogue_section(
        chitchat=common.source('tfds', 'chitchat'),
        chatterbot=common.source('tfds', 'chatterbot/english', weight=0.1),
    )
    if variant:
        kind, _, path = variant.partition('=')
        if kind != 'chat' or not path:
            raise ValueError(
                f'configs/sft.py:{variant}: name your files by configs/sft.py:chat=PATH'
            )
        config.dialogue = common.dialogue_section(own=common.source('chat', path))
        config.sft.epochs = 3.0
        config.train.update(eval_every=20, patience=3)
    else:
        # about 500 steps: two and a half minutes on two CPU cores
        config.sft.epochs = 0.14
        config.train.eval_every = 90
    config.optim.update(
        name='adamw', learning_rate=1e-3, schedule='linear', warmup_steps=20
    )
    config.train.update(batch_size=16, eval_batches=40)
    config.checkpoint.every = (
        config.train.eval_every
    )  # so that the best checkpoint is kept
    return config
