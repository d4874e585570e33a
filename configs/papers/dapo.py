"""Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
arXiv 2503.14476.

    c=configs/papers/dapo.py
    python -m gptjax pretrain --config configs/llama.py:1-33B --workdir runs/base \\
        --config.model.context=22528 --config.data.context=22528 \\
        --config.train.batch_size=184
    python -m gptjax sft  --config configs/sft.py --workdir runs/sft \\
        --config.start.run=runs/base
    python -m gptjax grpo --config $c:grpo --workdir runs/dapo

The variant takes `,tiny`. A context of 22,528 tokens are 20,480 of a reply and 2,048 of
a prompt.

From the paper, section 4.1: AdamW, constant 1e-6 after a linear warm-up of 20 rollouts,
512 prompts with 16 replies each, minibatches of 512 replies, 16 updates a rollout, an
expected length of 16,384 tokens and 4,096 more in which the punishment grows, so 20,480
at most, clips of 0.2 and 0.28. Sections 2.3, 2.4 and 3: no KL, a loss over all tokens
of a minibatch, groups of equal replies drawn again, a reward of 1 or -1.

From the authors' script (verl, recipe/dapo/run_dapo_qwen2.5_32b.sh), as the paper does
not say: decay 0.1, gradients clipped to 1, at most 10 draws of 1,536 prompts for a
rollout. Its warm-up is 10 and not 20.

Not the same:

- The paper starts from Qwen2.5-32B without fine-tuning. Here a reply has to end with a
  token that the model was taught: a Llama of 33B after `sft` stands for it.
- Problems are the user's own prompts.jsonl; DAPO-Math-17K is not fetched.
- The reward is 2 or 0 in place of 1 or -1: in a group the differences are the same,
  and so are the advantages, and the punishment of at most 1 has the same share.
- Where the draws give too few groups, the rollout is smaller; the paper draws on.
- 33 rollouts have as many groups as there are prompts, 33 x 512 of 17,000; the paper
  does not say how many it made. Each has 30 x 512 places in the order of prompts to
  itself, nearly a pass, and draws from as many as it takes: some prompts come more
  often than others.
"""

from configs import common, papers


def get_config(variant: str = 'grpo'):
    return papers.chosen(dict(grpo=grpo), variant)


def grpo():
    config = papers.policy(papers.SFT, problems=17_000)
    config.task.rewards = dict(correct=common.reward_part('correct', weight=2.0))
    config.policy.update(prompts=512, replies=16, epochs=1)
    config.policy.update(max_tokens=16_384 + 4096, overlong_buffer=4096)
    config.policy.update(temperature=1.0, kl_reward=0.0, kl_loss=0.0)
    config.grpo = common.grpo_section()
    config.grpo.update(advantage='grpo', objective='clipped', normaliser='token')
    # 10 x 1,536 prompts are 30 draws of 512
    config.grpo.update(clip_low=0.2, clip_high=0.28, resampling=29)
    # 20 rollouts of 16 updates
    config.optim.update(learning_rate=1e-6, warmup_steps=20 * 16)
    config.optim.update(weight_decay=0.1, clip_norm=1.0)
    config.train.update(num_steps=17_000 // 512 * 16, batch_size=512)
    return config
