"""Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective",
arXiv 2503.20783: Dr. GRPO, as for Oat-Zero-7B.

    c=configs/papers/dr_grpo.py
    python -m gptjax pretrain --config configs/llama.py:2-7B --workdir runs/base
    python -m gptjax sft  --config configs/sft.py --workdir runs/sft \\
        --config.start.run=runs/base
    python -m gptjax grpo --config $c:grpo --workdir runs/dr_grpo

The variant takes `,tiny`.

From the paper, appendix G, table 6: replies of 3,000 tokens at most, temperature 1, 8
replies per question, AdamW with 0.9 and 0.95, no weight decay, gradients clipped to a
norm of 1, a constant learning rate of 1e-6, one epoch per rollout, no KL in loss or
reward, a clip of 0.2. Section 3.2: the advantage is r - mean, and the sum over the
tokens of a reply is divided by a constant, the maximum length of a reply (listing 1).
The reward is 1 for a right answer, else 0.

From the authors' script (sail-sg/understand-r1-zero, examples/qwen2.5-math-7b.sh), as
the paper does not say: 128 questions per rollout, minibatches of 128 replies, 20 passes
over the 8,000 questions of MATH's levels 3 to 5. The 20 passes are the script's limit;
the paper trained for 27 hours on 8 A100 GPUs.

Read at the source: appendix G, the script, and the advantage, the constant and the
reward in the authors' train_zero_math.py. The number of questions is from the name of
the script's file, math_lvl3to5_8k. From memory: section 3.2.

Known departures:

- The paper starts from Qwen2.5-Math-7B without fine-tuning. Here a reply has to end
  with a token that the model was taught, so a Llama 2 of 7B after `sft` replaces it.
  Its context of 4,096 tokens holds the script's prompts of 1,024 and the replies.
- Questions and answers are the user's own, and Math-Verify does not judge them.
- The script gives a truncated reply a reward of 0. Here the verifier judges it too.
"""

from configs import common, papers


def get_config(variant: str = 'grpo'):
    return papers.choose_variant(dict(grpo=grpo), variant)


def grpo():
    config = papers.policy(papers.SFT, problems=8000)
    config.policy.update(prompts=128, replies=8, epochs=1, max_tokens=3000)
    config.policy.update(temperature=1.0, kl_reward=0.0, kl_loss=0.0)
    config.grpo = common.grpo_section()
    config.grpo.update(advantage='dr_grpo', objective='clipped', normaliser='constant')
    config.grpo.update(clip_low=0.2, clip_high=0.2)
    config.optim.update(learning_rate=1e-6, beta1=0.9, beta2=0.95)
    config.optim.update(weight_decay=0.0, clip_norm=1.0)
    # 1,250 rollouts of 1,024 replies, 8 updates each
    config.train.update(num_steps=20 * 8000 // 128 * 8, batch_size=128)
    return config
