#!/usr/bin/env bash
# Measures what helps on little data: every regularisation and augmentation of
# configs/small_data.py alone, and those that helped together, against the same control.
#
#   launch/study_data.sh [RUNS [SEED …]]
#
# It trains RUNS/text/SEED/NAME and, from the control of the seed, RUNS/dialogue/SEED/NAME
# (default: runs/study_data and the seeds 0, 1 and 2), each for less than a minute on two
# cores. It prints a table of each and writes it to validation.html in these folders. With
# the default seeds, what their intervals leave open (RUNS/first_look has these tables) is
# trained with the seeds 3 and 4 too. If you run it again, it continues where it stopped.
# If seeds are named, it trains only those and makes no table.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # started here: relative paths need no prefix

runs=${1:-runs/study_data}
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

text=(dropout weight_decay label_smoothing ema early_stopping
    subword_regularisation token_dropout token_masking character_noise reorder_words
    shuffle_sentences rotate_document delete_spans replace_synonyms fill_in_the_middle
    together)
dialogue=(dropout ema early_stopping neftune token_dropout together)

train() { # KIND SEED NAME STAGE VARIANT [FLAGS]: unless that run is finished
    local at=$runs/$1/$2/$3
    [ ! -e "$at/finished" ] || return 0
    mkdir -p "$at"
    stage "$4" --config "configs/small_data.py:$5" --workdir "$at" \
        --config.seed="$2" "${@:6}"
    : >"$at/finished"
}

train_text() { # SEED NAME…
    local name at
    for name in "${@:2}"; do
        at=$runs/text/$1/$name
        if [ ! -d "$at" ]; then # all runs have the same documents and tokenizer
            rm -rf "$at.new"
            mkdir -p "$at.new"
            cp -r "$runs"/data/* "$at.new"
            if [ "$name" = fill_in_the_middle ]; then # its tokenizer has three more
                rm -rf "$at.new/tokenizer" "$at.new/prepared"
            fi
            mv "$at.new" "$at"
        fi
        train text "$1" "$name" pretrain "$name"
    done
}

train_dialogue() { # SEED NAME…
    local name
    for name in "${@:2}"; do
        train dialogue "$1" "$name" sft "sft_$name" \
            --config.start.run="$runs/text/$1/control"
    done
}

compare() { # FOLDER NAME…
    local names=("${@:2}")
    stage stages --validation --workdir "$runs/$1" control "${names[@]/%/=control}"
}

open_runs() { # FOLDER: the runs whose interval has 0 in it
    "$python" -c 'import json, sys
rows = json.load(open(sys.argv[1]))
print(*(row["run"] for row in rows if row["best"].get("effect") == "open"))
' "$runs/$1/validation.json"
}

stage prepare --config configs/small_data.py:control --workdir "$runs/data"
for seed in "${seeds[@]}"; do
    train_text "$seed" control "${text[@]}"
    train_dialogue "$seed" control "${dialogue[@]}"
done
[ -n "$table" ] || exit 0

# What is open is decided by the default seeds only, also if this script is run again.
for kind in text dialogue; do
    mkdir -p "$runs/first_look/$kind"
    for seed in "${seeds[@]}"; do
        ln -sfn "../../$kind/$seed" "$runs/first_look/$kind/$seed"
    done
done
compare first_look/text "${text[@]}"
compare first_look/dialogue "${dialogue[@]}"

open_text=$(open_runs first_look/text)
open_dialogue=$(open_runs first_look/dialogue)
for seed in 3 4; do # for what three seeds leave open
    if [ -n "$open_text$open_dialogue" ]; then # dialogue starts from the text control
        train_text "$seed" control $open_text
    fi
    [ -z "$open_dialogue" ] || train_dialogue "$seed" control $open_dialogue
done
compare text "${text[@]}"
compare dialogue "${dialogue[@]}"
