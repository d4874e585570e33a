# Sourced by the other scripts of this folder, after environment.sh. Defines
#   stage ARGUMENTS  runs `python -m gptjax ARGUMENTS` and ends the script if it fails

# A stage runs in the background, so that the shell can forward a signal to it.
# Otherwise a signal could end the shell alone, and the stage would go on running.
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
    [ -z "$stopping" ] || exit 143 # the exit code of SIGTERM, which came between stages
    printf '\n== %s\n' "$*"
    "$python" -m gptjax "$@" &
    stage_process=$!
    while :; do
        signalled=
        status=0
        wait "$stage_process" || status=$?
        [ -n "$signalled" ] || break # a signal ends `wait`, but not yet the stage
    done
    stage_process=
    return "$status"
}
