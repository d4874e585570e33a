"""A reward model, trained on human ratings of conversations or on your preferences.

    python -m gptjax reward --config configs/reward.py --workdir runs/reward
    python -m gptjax reward --config configs/reward.py:replied --workdir runs/replied
    python -m gptjax reward --config configs/reward.py:mine.jsonl --workdir runs/mine

The variant is the target: a rating (`witty`, `interesting`, `upbeat`; by default the
sum of the three), what people did (`replied`, `continued`), or a file of preferences
with lines
{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"}
or rankings {"prompt": "…", "replies": ["the best", …]} (gptjax/data/README.md),
which is read reward.epochs times. The model is initialised from a pretrained or
fine-tuned run, such as --config.start.run=runs/sft.
"""

from configs import common

RATINGS = ('witty', 'interesting', 'upbeat')
BEHAVIOUR = ('replied', 'continued')


def get_config(variant: str = ''):
    config = common.base()
    config.start = common.start_section('runs/base')
    config.data.context = 0  # that of the model
    config.chat.template = ''  # that of start.run
    config.reward = common.reward_section()
    if variant in BEHAVIOUR:
        config.reward.update(target=variant, loss='binary')
        if variant == 'replied':
            config.data.context = 32  # a first turn is short
    elif variant in RATINGS:
        config.reward.target = variant
    elif variant:
        config.reward.update(preferences=variant, epochs=3.0)
    config.optim.update(
        name='adamw', learning_rate=1e-3, schedule='linear', warmup_steps=10
    )
    # 64 conversations in 8 groups have 224 pairs per update. There are 1,586
    # conversations to train on: 1,586 / 64 = 25 updates per epoch.
    config.train.update(num_steps=60, batch_size=64, eval_every=15, patience=2)
    config.checkpoint.update(every=15, keep=1)
    return config
