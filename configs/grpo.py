"""Reinforcement learning by comparing replies to one prompt: GRPO and its kin.

    python -m gptjax grpo --config configs/grpo.py --workdir runs/grpo
    python -m gptjax grpo --config configs/grpo.py:dapo --workdir runs/dapo
    python -m gptjax grpo --config configs/grpo.py --workdir runs/mine \\
        --config.start.run=runs/sft --config.task.path=problems.jsonl

Behind the colon: `grpo` (the default), `dr_grpo`, `dapo`, `gspo`, `rloo` or
`reinforce`. It starts from a run of the stage sft whose task it shares; problems of
your own are lines {"prompt": "…", "answer": "…"}.
"""

from configs import common

VARIANTS = {
    # Shao et al. 2024
    'grpo': dict(grpo=dict(), policy=dict()),
    # Liu et al. 2025
    'dr_grpo': dict(
        grpo=dict(advantage='dr_grpo', normaliser='constant'), policy=dict()
    ),
    # Yu et al. 2025
    'dapo': dict(
        grpo=dict(normaliser='token', clip_high=0.28, resampling=3),
        policy=dict(overlong_buffer=1),
    ),
    # Zheng et al. 2025
    'gspo': dict(
        grpo=dict(objective='gspo', clip_low=3e-4, clip_high=4e-4), policy=dict()
    ),
    # Ahmadian et al. 2024
    'rloo': dict(
        grpo=dict(advantage='rloo', objective='reinforce', normaliser='sum'),
        policy=dict(kl_reward=0.01),
    ),
    # Williams 1992
    'reinforce': dict(
        grpo=dict(advantage='reinforce', objective='reinforce', normaliser='sum'),
        policy=dict(prompts=256, replies=1, kl_reward=0.01),
    ),
}


def get_config(variant: str = 'grpo'):
    if variant and variant not in VARIANTS:
        raise ValueError(
            f'configs/grpo.py has no variant {variant!r}: use {", ".join(VARIANTS)}'
        )
    config = common.base()
    config.start = common.start_section('runs/sums_sft')
    config.chat.template = 'turns'
    config.data.context = 0  # the model's
    config.lora = common.lora_section()
    config.task = common.task_section()
    config.policy = common.policy_section()
    config.policy.update(prompts=32, replies=8, max_tokens=6, slots=128)
    config.grpo = common.grpo_section()
    chosen = VARIANTS[variant or 'grpo']
    config.grpo.update(chosen['grpo'])
    config.policy.update(chosen['policy'])
    config.optim.update(
        name='adamw', learning_rate=1e-4, schedule='constant', warmup_steps=0
    )
    # one update a rollout of 32 x 8 replies
    config.train.update(num_steps=200, batch_size=256, eval_every=20)
    config.checkpoint.every = 20
    return config
