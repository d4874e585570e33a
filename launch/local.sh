#!/usr/bin/env bash
# From a fresh machine to a pretrained, evaluated, sampled model:
#
#   launch/local.sh [CONFIG [WORKDIR]] [--config.field=value …]
#
# CONFIG is configs/chitchat.py unless given, about ten minutes on two cores, and
# WORKDIR is runs/ with the config's name. Everything after them goes to every
# stage. Run again, it goes on where it stopped. Ctrl-C and SIGTERM let training
# save first; the exit code is that of the stage that failed or was stopped.
#
# Relative CONFIG and WORKDIR count from where the command is typed; other paths,
# as in --config.data.sources.mine.path, from the repository's root.
set -euo pipefail

here=$PWD/
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$here" != "$PWD/" ] || here= # relative paths may stay so

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

# A stage runs in the background, so that the shell can hand on a signal while it
# waits; the shell's own end would leave the stage running alone.
stage_process=
stopping=
hand_on() {
    stopping=yes
    signalled=yes
    [ -z "$stage_process" ] || kill -TERM "$stage_process" 2>/dev/null || true
}
trap hand_on INT TERM

stage() {
    local status
    [ -z "$stopping" ] || exit 143 # as if by SIGTERM, between two stages
    printf '\n== %s\n' "$*"
    "$python" -m gptjax "$@" &
    stage_process=$!
    while :; do
        signalled=
        status=0
        wait "$stage_process" || status=$?
        [ -n "$signalled" ] || break # the stage ended, and not only the waiting
    done
    stage_process=
    return "$status"
}

for name in pretrain eval sample report; do
    stage "$name" --config "$config" --workdir "$workdir" "$@"
done
