"""One assistant, stage by stage: talk, and skills whose answers a program can check.

    python -m gptjax task     --config configs/assistant.py        --workdir runs/pretrained
    python -m gptjax pretrain --config configs/assistant.py        --workdir runs/pretrained
    python -m gptjax sft      --config configs/assistant.py:sft    --workdir runs/sft
    python -m gptjax select   --config configs/assistant.py:select --workdir runs/select
    python -m gptjax sft      --config configs/assistant.py:learn  --workdir runs/assistant

The problems are those of gptjax/post/problems/skills.py. `task` writes demonstrations of
them, which `pretrain` reads beside the text of chitchat and `sft` beside its dialogue.
`select` asks further problems and keeps right replies, and the last stage learns from
these (rejection sampling). launch/local.sh runs all of it with its evaluation.
"""

PROBLEMS = 'runs/pretrained/task/train.jsonl'
SELECTED = 'runs/select/selected/chats.jsonl'
