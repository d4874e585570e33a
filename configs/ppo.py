"""Reinforcement learning with a critic: PPO.

    python -m gptjax ppo --config configs/ppo.py --workdir runs/ppo
    python -m gptjax ppo --config configs/ppo.py:reward=runs/reward \\
        --workdir runs/chat_ppo

It starts from runs/sums_sft and is rewarded by the verifier of sums. Behind the colon
a reward model's run takes its place: then it starts from runs/sft, and prompts are out
of the conversations that this was taught. Others: --config.start.run=RUN, and
--config.task.path=FILE with lines {"prompt": "…"} or {"messages": […]}; for the
verifier each has its "answer" too.
"""

from configs import common, problems


def get_config(variant: str = ''):
    config = problems.base()
    config.lora = common.lora_section()
    config.policy = common.policy_section()
    config.policy.update(prompts=512, replies=1, max_tokens=6, slots=128)
    config.ppo = common.ppo_section()
    config.ppo.warm_up = 2
    config.optim.update(problems.POLICY_OPTIMIZER)
    config.optim.update(learning_rate=1.5e-3, matrix_learning_rate=1.5e-2)
    # 60 rollouts of 512 replies, two updates each
    config.train.update(num_steps=120, batch_size=256, eval_every=10)
    config.checkpoint.every = 10
    if variant:
        problems.use_reward_model(config, 'ppo.py', variant)
        config.policy.update(prompts=128, max_tokens=48, kl_reward=0.05)
        config.train.batch_size = 64
        config.optim.update(learning_rate=3e-4, matrix_learning_rate=3e-3)
    return config
