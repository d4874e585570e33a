"""Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", arXiv 2305.18290: dialogue (Anthropic HH) and TL;DR.

    c=configs/papers/dpo.py
    python -m gptjax pretrain --config configs/gpt3.py:2.7B --workdir runs/base
    python -m gptjax sft --config $c:sft --workdir runs/dpo_sft
    python -m gptjax dpo --config $c:dpo --workdir runs/dpo
    python -m gptjax dpo --config $c:dpo_tldr --workdir runs/dpo_tldr

Each variant takes `,tiny`.

From the paper, appendix B: RMSprop, beta 0.1, batch size 64, learning rate 1e-6, linear
warm-up of 150 steps; for TL;DR beta is 0.5.

From the authors' code (eric-mitchell/direct-preference-optimization, config/config.yaml
and README.md), as the paper does not say: one epoch, gradients clipped to a norm of 10,
no dropout, and all of `sft`: the same optimiser, batch size 64, one epoch, learning
rate 5e-7 (which is the code's default for DPO as well).

Read at the source: all of these, in the text of appendix B and in the code. From
memory: the decay rate of PyTorch's RMSprop, 0.99, which the code does not change, and
the beta of the sentiment task.

Known departures:

- RMSprop is written as Adam with beta1 = 0. Adam corrects the bias of the second moment
  in the first steps and RMSprop does not; the warm-up covers those steps.
- The pairs are comparisons.jsonl, and the chosen replies for `sft`
  demonstrations.jsonl. The code truncates prompts to 256 tokens and rows to 512; here
  the model's context limits them.
- A GPT-3 of 2.7B replaces Pythia-2.8B. For TL;DR the paper uses GPT-J 6B after someone
  else's SFT; `dpo_tldr` starts from the run of `sft` as well. For the sentiment task
  (GPT-2 large, beta 0.05 to 5) use `--config.preference.beta=…`.
"""

from configs import common, papers

RMSPROP = dict(beta1=0.0, beta2=0.99, epsilon=1e-8, warmup_steps=150, clip_norm=10.0)


def get_config(variant: str = 'sft'):
    return papers.choose_variant(dict(sft=sft, dpo=dpo, dpo_tldr=dpo_tldr), variant)


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
