"""Ouyang et al. 2022, "Training language models to follow instructions with human
feedback" (InstructGPT), arXiv 2203.02155: the 1.3B policy, PPO-ptx.

    c=configs/papers/instructgpt.py
    python -m gptjax pretrain --config configs/gpt3.py:xl --workdir runs/base
    python -m gptjax sft    --config $c:sft    --workdir runs/instructgpt_sft \\
        --config.model.residual_dropout=0.2
    python -m gptjax sft    --config $c:init   --workdir runs/instructgpt_init
    python -m gptjax reward --config $c:reward --workdir runs/instructgpt_reward \\
        --config.model.residual_dropout=0.0
    python -m gptjax ppo    --config $c:ppo    --workdir runs/instructgpt_ppo

`sft` is the paper's supervised model and what the reward model starts from; `init`,
with pretraining text mixed in, is what PPO starts from. Each variant takes `,tiny`.

From the paper, appendix C: Adam with 0.9 and 0.95; C.1 the 16 epochs of `sft`, cosine
to a tenth without warm-up, batch 32, learning rate 9.65e-6, and on the command line its
residual dropout of 0.2; C.2 `reward`'s one epoch, 9e-6, cosine to a tenth, 64 prompts,
and from table 6 its 33,207 prompts; C.3 `init`'s two epochs, 5e-6, batch 32, a tenth of
pretraining text; C.4 PPO's KL of 0.02, 256,000 episodes, batch 512 in 8 minibatches,
one inner epoch, a critic that begins as the reward model, warm-up of 10 iterations, EMA
0.992, no discount, clip 0.2, temperature 1, 8 pretraining examples an episode times
27.8; C: replies of 1k tokens at most, in a context of 2k.

Not the same:

- The data was never published: demonstrations.jsonl, comparisons.jsonl, prompts.jsonl.
- The reward model has the policy's size (6B in the paper), starts from `sft` (the paper
  found it similar) and reads pairs of two: the paper compares the 4 to 9 replies to a
  prompt in one batch. Its rewards are not shifted to 0 on demonstrations.
- The critic has the policy's learning rate. That is not published: 9e-6 is the
  critic's; the paper scans 2.55e-6 to 2.55e-5 (E.9).
- The warm-up begins near 0 and not at a tenth of the peak.
- Not said in the paper: GAE's lambda, the clipping and the weight of the value loss,
  whether advantages are whitened, over what the pretraining loss is averaged.
- The paper chooses its models by reward on validation prompts; here the last go on.
"""

from configs import common, papers

RUNS = 'runs/instructgpt'


def get_config(variant: str = 'sft'):
    variants = dict(sft=sft, init=init, reward=reward, ppo=ppo)
    return papers.chosen(variants, variant)


def sft():
    config = papers.sft()
    config.sft.epochs = 16.0
    config.optim.update(
        learning_rate=9.65e-6, schedule='cosine', final_scale=0.1, beta2=0.95
    )
    config.train.batch_size = 32
    return config


def init():
    config = papers.sft()
    config.sft.update(epochs=2.0, pretraining_share=0.1)
    config.optim.update(
        learning_rate=5e-6, schedule='cosine', final_scale=0.1, beta2=0.95
    )
    config.train.batch_size = 32
    return config


def reward():
    config = papers.reward(f'{RUNS}_sft')
    config.optim.update(
        learning_rate=9e-6, schedule='cosine', final_scale=0.1, beta2=0.95
    )
    # 64 pairs of two replies
    config.train.update(num_steps=33_207 // 64, batch_size=128)
    return config


def ppo():
    config = papers.policy(f'{RUNS}_init', problems=31_144)
    config.task.rewards = papers.rewarded_by(f'{RUNS}_reward')
    config.policy.update(prompts=512, replies=1, epochs=1, max_tokens=1024)
    config.policy.update(temperature=1.0, kl_reward=0.02)
    config.ppo = common.ppo_section()
    config.ppo.update(critic='network', critic_run=f'{RUNS}_reward')
    config.ppo.update(gamma=1.0, clip_low=0.2, clip_high=0.2)
    # beside each minibatch of 64
    config.ppo.update(ptx=27.8, ptx_run=papers.BASE, ptx_rows=8 * 64)
    # 10 iterations of 8 minibatches
    config.optim.update(learning_rate=9e-6, warmup_steps=80, beta2=0.95, ema=0.992)
    # 500 iterations of 8 minibatches
    config.train.update(num_steps=256_000 // 64, batch_size=64)
    return config
