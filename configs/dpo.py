"""Trains a policy on preference pairs.

    python -m gptjax dpo --config configs/dpo.py --workdir runs/dpo \\
        --config.start.run=runs/sft --config.preference.path=pairs.jsonl
    python -m gptjax dpo --config configs/dpo.py:simpo --workdir runs/simpo …

The variant is the loss: `dpo` (the default), `cdpo` (for labels that may be wrong),
`dpo_nll` (with the language loss of chosen replies), `ipo`, `kto`, `orpo` or `simpo`.
Each line of the file of pairs is
{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"},
or has another form of gptjax/data/README.md; `kto` also learns from labels of replies.
The stage `select` makes such files. --config.lora.rank=8 trains only LoRA adapters.
"""

from configs import common

VARIANTS = {
    'dpo': dict(loss='dpo', beta=0.1),  # Rafailov et al. 2023
    'cdpo': dict(loss='dpo', beta=0.1, label_smoothing=0.1),  # Mitchell 2023
    'dpo_nll': dict(loss='dpo', beta=0.1, nll=1.0),  # Pang et al. 2024
    'ipo': dict(loss='ipo', beta=0.1),  # Azar et al. 2024
    'kto': dict(loss='kto', beta=0.1),  # Ethayarajh et al. 2024
    'orpo': dict(loss='orpo', odds_weight=0.1),  # Hong et al. 2024
    'simpo': dict(loss='simpo', beta=2.0, margin=1.0),  # Meng et al. 2024
}


def get_config(variant: str = 'dpo'):
    if variant and variant not in VARIANTS:
        raise ValueError(
            f'configs/dpo.py has no variant {variant!r}: use {", ".join(VARIANTS)}'
        )
    config = common.base()
    config.start = common.start_section('runs/sft')
    config.preference = common.preference_section()
    config.preference.update(VARIANTS[variant or 'dpo'])
    config.lora = common.lora_section()
    config.chat.template = 'turns'
    config.data.context = 0  # that of the model
    config.optim.update(
        name='adamw', learning_rate=3e-5, schedule='linear', warmup_steps=10
    )
    config.train.update(batch_size=32, eval_every=50, patience=3)
    config.checkpoint.update(every=50, keep=1)
    return config
