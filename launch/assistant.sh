#!/usr/bin/env bash
# Trains an assistant from a pretrained run, and compares each stage with a control:
#
#   launch/assistant.sh [RUNS]
#
# RUNS (default: runs/) holds the pretrained run `chitchat`, which local.sh makes. This
# script makes in RUNS:
#
#   sft        dialogue
#   reward     a reward model, trained on human ratings
#   sums       a model pretrained on sums, which a program can verify
#   sums_sft   the same, fine-tuned
#   sums_dapo  then reinforcement learning by DAPO, a variant of GRPO
#   sums_more  its control: more fine-tuning instead
#
# It prints one table of all runs, with the training time of each, and writes it to
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

# ---- dialogue and its reward model
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
    echo 'Skipping the sums: no reasoning-gym (installing it needs a C compiler)' >&2
    stage stages --workdir "$runs" chitchat sft=chitchat
    exit
fi
sums=(--config.data.sources.sums.path="$runs/sums/task/train.jsonl")
taught=(--config.dialogue.sources.sums.path="$runs/sums/task/train.jsonl")
stage task --config configs/sums.py --workdir "$runs/sums" "${sums[@]}"
stage pretrain --config configs/sums.py --workdir "$runs/sums" "${sums[@]}"
stage sft --config configs/sums.py:sft --workdir "$runs/sums_sft" \
    --config.start.run="$runs/sums" "${taught[@]}"
# sums_dapo has fewer updates than in its config, so that this script takes about 20
# minutes. sums_more is fine-tuned for as many seconds as sums_dapo is trained.
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
