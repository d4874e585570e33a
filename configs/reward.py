"""A reward model from human ratings of conversations, or from your own preferences.

    python -m gptjax reward --config configs/reward.py --workdir runs/reward
    python -m gptjax reward --config configs/reward.py:replied --workdir runs/replied
    python -m gptjax reward --config configs/reward.py:mine.jsonl --workdir runs/mine

Behind the colon stands what is learned: `witty`, `interesting`, `upbeat` (without:
their sum), what people did, `replied` or `continued`, or a file of lines
{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"},
each of which is read reward.epochs times.
It starts from a pretrained or fine-tuned run: --config.start.run=runs/sft.
"""

from configs import common

RATINGS = ('witty', 'interesting', 'upbeat')
BEHAVIOUR = ('replied', 'continued')


def get_config(variant: str = ''):
    config = common.base()
    config.start = common.start_section('runs/chitchat')
    config.data.context = 0  # as the model's
    config.chat.template = ''  # as the run's that it starts from
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
    # 64 conversations in 8 groups: 224 pairs an update; 1,586 to train on / 64 = 25
    # updates an epoch.
    config.train.update(num_steps=60, batch_size=64, eval_every=15, patience=2)
    config.checkpoint.update(every=15, keep=1)
    return config
