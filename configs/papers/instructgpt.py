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

`sft` is the paper's supervised model, from which the reward model starts. `init` is
fine-tuned with pretraining text mixed in, and PPO starts from it. Each variant takes
`,tiny`.

From the paper, appendix C: Adam with 0.9 and 0.95, a context of 2k tokens, replies of
at most 1k. C.1, `sft`: 16 epochs, learning rate 9.65e-6, cosine to a tenth without
warm-up, batch size 32, and the residual dropout of 0.2 of the command above. C.2,
`reward`: one epoch, 9e-6, cosine to a tenth, 64 prompts per batch; table 9: 33,207
prompts. C.3, `init`: two epochs, 5e-6, cosine to a tenth, batch size 32, a tenth of
pretraining text. C.4, `ppo`: KL coefficient 0.02, 256,000 episodes, 31,144 prompts
(table 9), batches of 512 in 8 minibatches, one epoch, a critic initialised from the
reward model, a warm-up of 10 rollouts, EMA 0.992, no discount, a clip of 0.2,
temperature 1, 8 pretraining examples per episode with a coefficient of 27.8.

Read at the source: all of these, in the text of appendices A, C and E. There is no
public code.

Known departures:

- The data was never published; the files are the user's own demonstrations.jsonl,
  comparisons.jsonl and prompts.jsonl.
- The reward model has the policy's size (6B in the paper), starts from `sft` (the paper
  found similar results) and is trained on pairs; the paper compares the 4 to 9 replies
  to a prompt in one batch. Its rewards are not shifted to 0 on demonstrations.
- The critic has the policy's learning rate. The policy's is not published: 9e-6 is the
  critic's, and the paper scans 2.55e-6 to 2.55e-5 (E.9).
- The warm-up begins near 0 and not at a tenth of the peak.
- The paper does not say: lambda of GAE, the clip and the coefficient of the value loss,
  whether advantages are whitened, over what the pretraining loss is averaged.
- The paper chooses its supervised model by reward on validation prompts (C.1) and its
  PPO models by the labellers' scores (E.9). Here the last checkpoint is used.
"""

from configs import common, papers

RUNS = 'runs/instructgpt'


def get_config(variant: str = 'sft'):
    variants = dict(sft=sft, init=init, reward=reward, ppo=ppo)
    return papers.choose_variant(variants, variant)


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
    config.policy.update(temperature=1.0, kl_reward=0.02, kl_estimator='k1')
    config.ppo = common.ppo_section()
    config.ppo.update(critic='network', critic_run=f'{RUNS}_reward')
    config.ppo.update(gamma=1.0, clip_low=0.2, clip_high=0.2)
    # 8 pretraining examples for each of the 64 episodes of a minibatch
    config.ppo.update(ptx=27.8, ptx_run=papers.BASE, ptx_rows=8 * 64)
    # 10 iterations of 8 minibatches
    config.optim.update(learning_rate=9e-6, warmup_steps=80, beta2=0.95, ema=0.992)
    # 500 iterations of 8 minibatches
    config.train.update(num_steps=256_000 // 64, batch_size=64)
    return config
