#!/usr/bin/env bash
# Trains a chat assistant on a fresh machine, in about half an hour on two cores:
#
#   launch/local.sh
#
# does what launch/assistant.sh says.
#
#   launch/local.sh CONFIG [WORKDIR] [--config.field=value …]
#
# pretrains, evaluates and samples CONFIG, and stops then. The default of WORKDIR is runs/
# and the name of the config. All further arguments are passed to every stage. If you run
# it again, it continues where it stopped. On Ctrl-C and SIGTERM, training saves a
# checkpoint first; the exit code is that of the stage that failed or was stopped.
#
# Relative paths of CONFIG and WORKDIR start at the current directory; other paths, as in
# --config.data.sources.mine.path, start at the repository's root.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # started here: relative paths need no prefix

[ $# -gt 0 ] || exec launch/assistant.sh
config=configs/chitchat.py
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then # the next argument is not a flag
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
