"""Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
arXiv 2503.14476.

    c=configs/papers/dapo.py
    python -m gptjax pretrain --config configs/llama.py:1-33B --workdir runs/base \\
        --config.model.context=22528 --config.data.context=22528 \\
        --config.train.batch_size=184
    python -m gptjax sft  --config configs/sft.py --workdir runs/sft \\
        --config.start.run=runs/base
    python -m gptjax grpo --config $c:grpo --workdir runs/dapo

The variant takes `,tiny`. The context of 22,528 tokens holds a reply of 20,480 and a
prompt of 2,048.

From the paper, section 4.1: AdamW, a constant learning rate of 1e-6 after a linear
warm-up of 20 rollouts, 512 prompts with 16 replies each, minibatches of 512 replies,
so 16 updates per rollout, replies of 20,480 tokens at most with a penalty that grows
over the last 4,096, clips of 0.2 and 0.28. Sections 2.3, 2.4 and 3: no KL, a loss over
all tokens of a minibatch, groups with equal scores are drawn again, a reward of 1 or
-1. Figure 1: the axis counts gradient updates and ends at 10,000, and DAPO passes the
score of R1-Zero with half of its steps. So here are 312 rollouts, 4,992 updates.

From the authors' script (verl, recipe/dapo/run_dapo_qwen2.5_32b.sh), as the paper does
not say: weight decay 0.1, gradients clipped to a norm of 1, at most 10 draws of 1,536
prompts per rollout. The script leaves beta1 and beta2 at verl's default, 0.9 and 0.999.

Read at the source: everything above, in the text of the paper and in verl at commit
4f80e465, which the authors name for their reproduction. The number of updates is read
from the axis of a figure, so it is approximate.

Known departures:

- The paper starts from Qwen2.5-32B without fine-tuning. Here a reply has to end with a
  token that the model was taught, so a Llama of 33B after `sft` replaces it.
- The problems are the user's own prompts.jsonl; DAPO-Math-17K is not downloaded.
- The reward is 2 or 0 and not 1 or -1. The differences in a group are the same, so the
  advantages are too, and the length penalty of at most 1 has the same share.
- If 30 draws of 512 prompts give too few groups with unequal scores, the rollout is
  smaller. The paper draws further prompts; the script stops with an error.
- A rollout begins 30 x 512 places after the one before in the order of prompts, however
  few of them it drew. So some prompts are drawn more often than others.
- The script's warm-up has 10 rollouts, the paper's and this one 20.
- The script also limits the loss where the advantage is negative and the probability
  ratio is above 10 (`clip_ratio_c`). The paper does not mention it; it is not here.
"""

from configs import common, papers


def get_config(variant: str = 'grpo'):
    return papers.choose_variant(dict(grpo=grpo), variant)


def grpo():
    config = papers.policy(papers.SFT, problems=17_000)
    config.task.rewards = dict(correct=common.reward_part('correct', weight=2.0))
    config.policy.update(prompts=512, replies=16, epochs=1)
    config.policy.update(max_tokens=16_384 + 4096, overlong_buffer=4096)
    config.policy.update(temperature=1.0, kl_reward=0.0, kl_loss=0.0)
    config.grpo = common.grpo_section()
    config.grpo.update(advantage='grpo', objective='clipped', normaliser='token')
    # 10 draws of 1,536 prompts are 30 of 512: the first and 29 more
    config.grpo.update(clip_low=0.2, clip_high=0.28, resampling=29)
    # 20 rollouts of 16 updates
    config.optim.update(learning_rate=1e-6, warmup_steps=20 * 16)
    config.optim.update(beta1=0.9, beta2=0.999, weight_decay=0.1, clip_norm=1.0)
    # half of figure 1's 10,000 updates, in whole rollouts
    config.train.update(num_steps=5000 // 16 * 16, batch_size=512)
    return config
