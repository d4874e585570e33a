"""Reinforcement learning with a critic: PPO.

    python -m gptjax ppo --config configs/ppo.py --workdir runs/ppo
    python -m gptjax ppo --config configs/ppo.py:reward=runs/reward \\
        --workdir runs/chat_ppo

The policy is initialised from runs/sums_sft, and the verifier of sums gives the reward.
The variant `reward=RUN` is for dialogue: the reward model of RUN gives the reward, the
policy is initialised from runs/sft, and the prompts come from the conversations that
runs/sft was trained on. --config.start.run=RUN names another run, whose conversations
are used then, and --config.task.path=FILE other prompts: lines {"prompt": "…"} or
{"messages": […]}, with an "answer" for the verifier.
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
    # 60 rollouts of 512 replies, with two updates each
    config.train.update(num_steps=120, batch_size=256, eval_every=10)
    config.checkpoint.every = 10
    if variant:
        problems.use_reward_model(config, 'ppo.py', variant)
        config.policy.update(prompts=128, max_tokens=48, kl_reward=0.05)
        config.train.batch_size = 64
        config.optim.update(learning_rate=3e-4, matrix_learning_rate=3e-3)
    return config
