"""Reinforcement learning without a critic: GRPO and related algorithms.

    python -m gptjax grpo --config configs/grpo.py --workdir runs/grpo
    python -m gptjax grpo --config configs/grpo.py:dapo --workdir runs/dapo
    python -m gptjax grpo --config configs/grpo.py --workdir runs/mine \\
        --config.start.run=runs/sft --config.task.path=problems.jsonl

The variant is the algorithm: `grpo` (the default), `dr_grpo`, `dapo`, `gspo`, `rloo` or
`reinforce`. The policy is initialised from a run of the stage sft that was trained on
the same task. Each line of a file with your own problems is
{"prompt": "…", "answer": "…"}.
"""

from configs import common, problems

# One update per rollout, so the probability ratio is 1 and never clipped.
ONCE = {'train.batch_size': 512, 'train.num_steps': 60}

VARIANTS = {
    'grpo': {},  # Shao et al. 2024
    # Liu et al. 2025
    'dr_grpo': {'grpo.advantage': 'dr_grpo', 'grpo.normaliser': 'constant'},
    # Yu et al. 2025
    'dapo': {
        'grpo.normaliser': 'token',
        'grpo.clip_high': 0.28,
        'grpo.resampling': 3,
        'policy.overlong_buffer': 1,  # the only penalty of truncated replies
        'policy.missing_eos_penalty': 0.0,
        # All groups of a rollout have unequal scores, which allows larger updates. 40
        # rollouts with extra draws take as long as 60 without.
        'optim.learning_rate': 1.2e-3,
        'optim.matrix_learning_rate': 1.2e-2,
        'train.num_steps': 80,
    },
    # Zheng et al. 2025
    'gspo': {
        'grpo.objective': 'gspo',
        'grpo.clip_low': 3e-4,
        'grpo.clip_high': 4e-4,
    },
    # Ahmadian et al. 2024
    'rloo': {
        'grpo.advantage': 'rloo',
        'grpo.objective': 'reinforce',
        'grpo.normaliser': 'sum',
        'policy.kl_reward': 0.01,
        **ONCE,
    },
    # Williams 1992
    'reinforce': {
        'grpo.advantage': 'reinforce',
        'grpo.objective': 'reinforce',
        'grpo.normaliser': 'sum',
        'policy.prompts': 512,
        'policy.replies': 1,
        'policy.kl_reward': 0.01,
        **ONCE,
    },
}


def get_config(variant: str = 'grpo'):
    if variant and variant not in VARIANTS:
        raise ValueError(
            f'configs/grpo.py has no variant {variant!r}: use {", ".join(VARIANTS)}'
        )
    config = problems.base()
    config.lora = common.lora_section()
    config.policy = common.policy_section()
    config.policy.update(prompts=64, replies=8, max_tokens=6, slots=128)
    config.grpo = common.grpo_section()
    config.optim.update(problems.POLICY_OPTIMIZER)
    config.optim.update(learning_rate=3e-4, matrix_learning_rate=3e-3)
    # 60 rollouts of 64 x 8 replies, with two updates each
    config.train.update(num_steps=120, batch_size=256, eval_every=10)
    config.checkpoint.every = 10
    config.update_from_flattened_dict(VARIANTS[variant or 'grpo'])
    return config
