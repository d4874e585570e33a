# Sourced by the scripts beside it, after environment.sh. Defines
#   stage WORDS  runs `python -m gptjax WORDS` and ends the script if it fails

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
