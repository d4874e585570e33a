"""Every field of `policy`, `ppo` and `grpo`, in the form of schema.py."""

from gptjax.core.fields import AT_LEAST_1, POSITIVE, SHARE, Field, one_of

# Rollouts of PPO and GRPO, and the updates that follow each rollout.
POLICY = dict(
    prompts=Field(32, 'prompts in a rollout', AT_LEAST_1),
    replies=Field(8, 'replies per prompt (G); train.batch_size per update', AT_LEAST_1),
    epochs=Field(1, 'passes over a rollout', AT_LEAST_1),
    max_tokens=Field(16, 'maximum tokens of a reply, with the stop token', AT_LEAST_1),
    temperature=Field(1.0, 'temperature of sampling and of the loss', POSITIVE),
    slots=Field(64, 'replies that an engine generates at once', AT_LEAST_1, free=True),
    generation_tensor=Field(1, 'devices per copy of weights', AT_LEAST_1, free=True),
    kl_reward=Field(0.0, 'coefficient of the KL in the reward; excludes kl_loss'),
    kl_loss=Field(0.0, 'coefficient of the KL in the loss'),
    kl_estimator=Field(
        '',
        "of that KL; '': the right one, k1 in the reward, k2 in the loss (see kl.py)",
        one_of('', 'k1', 'k2', 'k3'),
    ),
    kl_target=Field(6.0, 'KL per reply in nats for an adaptive coefficient', POSITIVE),
    kl_horizon=Field(0, 'replies over which the coefficient adapts; 0: never'),
    entropy=Field(0.0, 'coefficient of the entropy bonus in the loss'),
    missing_eos_penalty=Field(1.0, 'subtracted from the score of a truncated reply'),
    overlong_buffer=Field(0, 'tokens before max_tokens with a rising penalty; 0: none'),
    mask_truncated=Field(False, 'leave truncated replies out of the loss'),
    reward_scale=Field(1.0, 'divides scores', POSITIVE),
    reward_running_scale=Field(False, 'also divide by the running standard deviation'),
    reward_clip=Field(0.0, 'maximum absolute value of scaled scores; 0: no clipping'),
)

# Proximal policy optimisation (Schulman et al. 2017).
PPO = dict(
    critic=Field(
        'head', 'head on the policy, or separate network', one_of('head', 'network')
    ),
    critic_run=Field('', "reward model that initialises a 'network'; '': the policy"),
    gamma=Field(1.0, 'discount of later rewards', SHARE),
    lam=Field(0.95, 'lambda of generalised advantage estimation', SHARE),
    clip_low=Field(0.2, 'the probability ratio is clipped at 1 - clip_low', POSITIVE),
    clip_high=Field(0.2, 'the probability ratio is clipped at 1 + clip_high', POSITIVE),
    value_clip=Field(0.2, 'maximum change of values since the rollout; 0: no clipping'),
    value_coefficient=Field(0.1, 'coefficient of the value loss', POSITIVE),
    whiten=Field(True, 'normalise advantages to mean 0 and variance 1'),
    warm_up=Field(0, 'rollouts at the start that train only the critic'),
    ptx=Field(0.0, 'coefficient of the language loss on pretraining text'),
    ptx_run=Field('', 'run directory whose RUN/prepared is that text'),
    ptx_rows=Field(32, 'rows of that text in an update', AT_LEAST_1),
)

# Group-relative policy optimisation (Shao et al. 2024) and related algorithms.
GRPO = dict(
    advantage=Field(
        'grpo',
        'how a score becomes an advantage; see grpo.py',
        one_of('grpo', 'dr_grpo', 'rloo', 'reinforce'),
    ),
    objective=Field(
        'clipped',
        'loss of the policy; see grpo.py',
        one_of('clipped', 'gspo', 'reinforce'),
    ),
    normaliser=Field(
        'sequence',
        'what divides the sum over tokens',
        one_of('sequence', 'token', 'constant', 'sum'),
    ),
    clip_low=Field(0.2, 'the probability ratio is clipped at 1 - clip_low', POSITIVE),
    clip_high=Field(0.2, 'the probability ratio is clipped at 1 + clip_high', POSITIVE),
    resampling=Field(0, 'extra draws of prompts to replace groups with equal scores'),
)
