#!/usr/bin/env bash
# Measures the gain of each stage after fine-tuning, over three seeds:
#
#   launch/study.sh [RUNS [SEED …]]
#
# In RUNS/SEED (default: runs/study and the seeds 0, 1 and 2) it trains a model on sums,
# fine-tunes it on 1,200 demonstrations, and continues from there by each method:
#
#   more, longer  controls: more fine-tuning, for as long as the other methods take
#   rejection     fine-tuning on the model's own right replies
#   dpo, dpo_nll  preference pairs of its own replies
#   ppo, grpo, dapo
#
# It prints one table and writes it to RUNS/stages.html. If you run it again, it continues
# where it stopped. If seeds are named, it trains only those and makes no table, so that
# several machines or cores can share the work.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # started here: relative paths need no prefix

runs=${1:-runs/study}
[ $# -eq 0 ] || [ "${runs#/}" != "$runs" ] || runs=$here$runs
table=yes
seeds=(0 1 2)
if [ $# -gt 1 ]; then
    table=
    seeds=("${@:2}")
fi

. launch/environment.sh
need requirements.txt
need launch/requirements.txt
. launch/stage.sh

for seed in "${seeds[@]}"; do
    at=$runs/$seed
    from_sft=(--config.start.run="$at/sft" --config.seed="$seed")
    sums=(--config.seed="$seed" --config.data.sources.sums.path="$at/sums/task/train.jsonl")
    taught=--config.dialogue.sources.sums.path
    pairs=--config.preference.path=$at/select/selected/pairs.jsonl

    stage task --config configs/sums.py --workdir "$at/sums" "${sums[@]}"
    stage pretrain --config configs/sums.py --workdir "$at/sums" "${sums[@]}"
    stage sft --config configs/sums.py:sft --workdir "$at/sft" \
        --config.start.run="$at/sums" --config.seed="$seed" \
        "$taught=$at/sums/task/train.jsonl"

    stage sft --config configs/sums.py:sft --workdir "$at/more" "${from_sft[@]}" \
        "$taught=$at/sums/task/train.jsonl"
    stage sft --config configs/sums.py:sft --workdir "$at/longer" "${from_sft[@]}" \
        "$taught=$at/sums/task/train.jsonl" --config.train.num_steps=2300
    stage select --config configs/select.py --workdir "$at/select" "${from_sft[@]}" \
        --config.select.problems=5000 --config.select.pairs=4
    stage sft --config configs/sums.py:sft --workdir "$at/rejection" "${from_sft[@]}" \
        "$taught=$at/select/selected/chats.jsonl" --config.train.num_steps=1000
    for loss in dpo dpo_nll; do
        stage dpo --config "configs/dpo.py:$loss" --workdir "$at/$loss" \
            "${from_sft[@]}" "$pairs" --config.preference.epochs=8 \
            --config.optim.name=muon --config.optim.learning_rate=5e-4 \
            --config.optim.matrix_learning_rate=5e-3
    done
    stage ppo --config configs/ppo.py --workdir "$at/ppo" "${from_sft[@]}"
    for kind in grpo dapo; do
        stage grpo --config "configs/grpo.py:$kind" --workdir "$at/$kind" \
            "${from_sft[@]}"
    done

    for run in sft more longer rejection dpo dpo_nll ppo grpo dapo; do
        stage eval --workdir "$at/$run" --tasks "task:$at/grpo"
    done
done

[ -z "$table" ] || stage stages --workdir "$runs" \
    sft more=sft longer=sft rejection=longer dapo=longer ppo=longer \
    dpo_nll=more grpo=more dpo=more
