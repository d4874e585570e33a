#!/usr/bin/env bash
# Trains a chat assistant, stage by stage, and shows what each stage gave:
#
#   launch/assistant.sh [RUNS]
#
# RUNS (default: runs/) gets these runs, each from one before it:
#
#   base       pretraining on conversations and on problems of ten skills
#   reward     a reward model, trained on human ratings, from base
#   skills     fine-tuning on dialogue and on demonstrations of the skills, from base
#   assistant  more of the same, from skills
#   replies    right replies of skills to further problems
#   own        fine-tuning on these for as long as assistant: rejection sampling
#
# It prints one table of all stages, with the training time of each, and writes it to
# RUNS/stages.html. If you run it again, it continues where it stopped.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # started here: relative paths need no prefix

runs=${1:-runs}
[ $# -eq 0 ] || [ "${runs#/}" != "$runs" ] || runs=$here$runs

. launch/environment.sh
need requirements.txt
. launch/stage.sh

config=configs/assistant.py
text=--config.data.sources.skills.path=$runs/base/task/train.jsonl
demonstrations=--config.dialogue.sources.skills.path=$runs/base/task/train.jsonl
from_skills=--config.start.run=$runs/skills

stage task --config $config --workdir "$runs/base" "$text"
stage pretrain --config $config --workdir "$runs/base" "$text"
for name in eval sample report; do
    stage $name --workdir "$runs/base"
done
stage reward --config configs/reward.py --workdir "$runs/reward" \
    --config.start.run="$runs/base"
stage sft --config $config:skills --workdir "$runs/skills" \
    --config.start.run="$runs/base" "$demonstrations"
stage sft --config $config:more --workdir "$runs/assistant" "$from_skills" \
    "$demonstrations"
stage select --config $config:select --workdir "$runs/replies" "$from_skills"
stage sft --config $config:own --workdir "$runs/own" "$from_skills" "$demonstrations" \
    --config.dialogue.sources.own.path="$runs/replies/selected/chats.jsonl"

# ---- what each stage gave
for run in base skills own assistant; do
    stage eval --workdir "$runs/$run" \
        --tasks "task:$runs/base,dialogue:$runs/skills:chitchat+chatterbot"
done
stage stages --workdir "$runs" base skills assistant=skills own=assistant
for run in base reward skills own; do
    stage report --workdir "$runs/$run" >/dev/null
done
stage report --workdir "$runs/assistant"
