#!/usr/bin/env bash
# From a pretrained run to an assistant, each stage beside its control:
#
#   launch/assistant.sh [RUNS]
#
# RUNS is runs/ unless given and holds the pretrained run `chitchat`; local.sh makes
# it. Makes beside it `sft` (dialogue), `reward` (a reward model from human ratings)
# and, on sums that a program can verify, `sums` (a model from nothing), `sums_sft`,
# `sums_dapo` (reinforcement learning by DAPO, a kind of GRPO) and its control
# `sums_more` (fine-tuned again instead). The last screen and RUNS/stages.html have them
# in one table, with the seconds that each was trained. Run again, it goes on where it
# stopped.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # relative paths may stay so

runs=${1:-runs}
[ $# -eq 0 ] || [ "${runs#/}" != "$runs" ] || runs=$here$runs

. launch/environment.sh
need requirements.txt
. launch/stage.sh

# ---- dialogue, and a reward model of it
stage sft --config configs/sft.py --workdir "$runs/sft" \
    --config.start.run="$runs/chitchat"
stage eval --workdir "$runs/chitchat" --tasks "dialogue:$runs/sft"
stage eval --workdir "$runs/sft" --tasks dialogue
stage report --workdir "$runs/sft"
stage reward --config configs/reward.py --workdir "$runs/reward" \
    --config.start.run="$runs/chitchat"
stage report --workdir "$runs/reward"

# ---- sums
if ! need launch/requirements.txt; then
    echo 'Without reasoning-gym (it needs a C compiler) the sums are left out' >&2
    stage stages --workdir "$runs" chitchat sft=chitchat
    exit
fi
sums=(--config.data.sources.sums.path="$runs/sums/task/train.jsonl")
taught=(--config.dialogue.sources.sums.path="$runs/sums/task/train.jsonl")
stage task --config configs/sums.py --workdir "$runs/sums" "${sums[@]}"
stage pretrain --config configs/sums.py --workdir "$runs/sums" "${sums[@]}"
stage sft --config configs/sums.py:sft --workdir "$runs/sums_sft" \
    --config.start.run="$runs/sums" "${taught[@]}"
# sums_dapo has fewer updates than its config, as all of it is to take some 20 minutes,
# and sums_more is fine-tuned for as long.
stage sft --config configs/sums.py:sft --workdir "$runs/sums_more" \
    --config.start.run="$runs/sums_sft" "${taught[@]}" --config.train.num_steps=2300
stage grpo --config configs/grpo.py:dapo --workdir "$runs/sums_dapo" \
    --config.start.run="$runs/sums_sft" --config.train.num_steps=50
for run in sums_sft sums_more sums_dapo; do
    stage eval --workdir "$runs/$run" --tasks "task:$runs/sums_dapo"
    stage report --workdir "$runs/$run"
done

stage stages --workdir "$runs" \
    chitchat sft=chitchat sums_sft sums_more=sums_sft sums_dapo=sums_more
