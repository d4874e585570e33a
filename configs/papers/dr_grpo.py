"""Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective",
arXiv 2503.20783: Dr. GRPO, as for Oat-Zero-7B.

    c=configs/papers/dr_grpo.py
    python -m gptjax pretrain --config configs/llama.py:2-7B --workdir runs/base
    python -m gptjax sft  --config configs/sft.py --workdir runs/sft \\
        --config.start.run=runs/base
    python -m gptjax grpo --config $c:grpo --workdir runs/dr_grpo

The variant takes `,tiny`.

From the paper, appendix G, table 6: replies of 3,000 tokens at most, temperature 1, 8
replies a question, AdamW with 0.9 and 0.95, no decay, gradients clipped to 1, constant
1e-6, one inner epoch, no KL in loss or reward, clip 0.2. Section 3.2: the advantage is
r - mean, and the sum over a reply is divided by a constant, the most tokens that a
reply may have (listing 1); the reward is 1 for a right answer, else 0.

From the authors' script (sail-sg/understand-r1-zero, examples/qwen2.5-math-7b.sh), as
the paper does not say: 128 questions in a rollout, minibatches of 128 replies, 20
passes over the 8,000 questions of MATH's levels 3 to 5. That is the script's limit; the
paper trained for 27 hours on 8 A100s.

Not the same:

- The paper starts from Qwen2.5-Math-7B without fine-tuning. Here a reply has to end
  with a token that the model was taught: a Llama 2 of 7B after `sft` stands for it. Its
  context of 4,096 holds the script's prompts of 1,024 tokens and the replies.
- Questions and answers are the user's own, and Math-Verify does not judge them.
"""

from configs import common, papers


def get_config(variant: str = 'grpo'):
    return papers.chosen(dict(grpo=grpo), variant)


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
