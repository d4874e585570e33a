#!/usr/bin/env bash
# From a fresh machine to a chat assistant:
#
#   launch/local.sh
#
# pretrains configs/chitchat.py into runs/chitchat, eight to ten minutes on two cores,
# evaluates and samples it, and goes on with launch/assistant.sh.
#
#   launch/local.sh CONFIG [WORKDIR] [--config.field=value …]
#
# ends after pretraining, evaluation and samples. WORKDIR is runs/ with the config's
# name unless given; what stands after it goes to every stage. Run again, either goes
# on where it stopped. Ctrl-C and SIGTERM let training save first; the exit code is
# that of the stage that failed or was stopped.
#
# Relative CONFIG and WORKDIR count from where the command is typed; other paths,
# as in --config.data.sources.mine.path, from the repository's root.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # relative paths may stay so

whole=yes
[ $# -eq 0 ] || whole=
config=configs/chitchat.py
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then # the next word is no flag
    config=$1
    [ ! -e "$here${config%%:*}" ] || config=$here$config
    shift
fi
workdir=runs/$(basename "${config%%:*}" .py)
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    workdir=$1
    [ "${workdir#/}" != "$workdir" ] || workdir=$here$workdir
    shift
fi

. launch/environment.sh
need requirements.txt

. launch/stage.sh

for name in pretrain eval sample report; do
    stage "$name" --config "$config" --workdir "$workdir" "$@"
done
[ -z "$whole" ] || exec launch/assistant.sh
