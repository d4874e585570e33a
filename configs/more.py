"""Continued pretraining: an earlier model is trained on your own text.

    python -m gptjax pretrain --config configs/more.py:notes.txt --workdir runs/more

The model and tokenizer come from runs/base; --config.start.run=RUN names another
run. The variant is the same as that of configs/own.py.
"""

from configs import common, own


def get_config(variant: str = ''):
    try:
        config = own.get_config(variant)
    except ValueError as error:
        raise ValueError(str(error).replace('own.py', 'more.py')) from error
    config.start = common.start_section('runs/base')
    config.data.context = 0  # that of the model
    # a quarter of the peak learning rates of configs/chitchat.py
    config.optim.update(
        learning_rate=2.5e-3, matrix_learning_rate=5e-3, schedule='linear'
    )
    config.train.update(num_steps=600, eval_every=100, patience=3)
    config.checkpoint.every = (
        config.train.eval_every
    )  # so that the best checkpoint is kept
    return config
