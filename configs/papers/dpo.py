"""Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", arXiv 2305.18290: dialogue (Anthropic HH) and TL;DR.

    c=configs/papers/dpo.py
    python -m gptjax pretrain --config configs/gpt3.py:2.7B --workdir runs/base
    python -m gptjax sft --config $c:sft --workdir runs/dpo_sft
    python -m gptjax dpo --config $c:dpo --workdir runs/dpo
    python -m gptjax dpo --config $c:dpo_tldr --workdir runs/dpo_tldr

Each variant takes `,tiny`.

From the paper, appendix B: beta 0.1, batch 64, learning rate 1e-6, linear warm-up of
150 steps; of TL;DR beta 0.5. RMSprop is Adam with beta1 = 0, which is set; it corrects
the second moment's bias in the first steps, which RMSprop does not, and the warm-up
covers them.

From the authors' code (eric-mitchell/direct-preference-optimization), as the paper does
not say: one epoch, gradients clipped to a norm of 10, RMSprop's decay of 0.99 (the
default of PyTorch's, which it uses), and all of `sft`: the same optimiser, batch 64,
one epoch, 5e-7 (the code's default for DPO as well).

Not the same:

- The pairs are comparisons.jsonl, the chosen replies for `sft` demonstrations.jsonl.
  The code cuts prompts to 256 and rows to 512 tokens; here the model's context does.
- A GPT-3 of 2.7B stands for Pythia-2.8B. TL;DR has GPT-J 6B and an SFT model of other
  people's; `dpo_tldr` starts from `sft` as well. The sentiment task (GPT-2 large, beta
  0.05 to 5) is `--config.preference.beta=…`.
- No dropout, in the policy as in the reference.
"""

from configs import common, papers

RMSPROP = dict(beta1=0.0, beta2=0.99, epsilon=1e-8, warmup_steps=150, clip_norm=10.0)


def get_config(variant: str = 'sft'):
    return papers.chosen(dict(sft=sft, dpo=dpo, dpo_tldr=dpo_tldr), variant)


def sft():
    config = papers.sft()
    config.sft.epochs = 1.0
    config.optim.update(RMSPROP)
    config.optim.learning_rate = 5e-7
    config.train.batch_size = 64
    return config


def dpo():
    config = papers.base('runs/dpo_sft')
    config.preference = common.preference_section()
    config.preference.update(path=papers.COMPARISONS, loss='dpo', beta=0.1, epochs=1.0)
    config.optim.update(RMSPROP)
    config.optim.learning_rate = 1e-6
    config.train.batch_size = 64
    return config


def dpo_tldr():
    config = dpo()
    config.preference.beta = 0.5
    return config
