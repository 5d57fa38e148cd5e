# Sourced by recipes/*/run.sh, whose options are those of `fpspeech run`.

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*" >&2; }

# run_stages SCRIPT RECIPE [OPTION]...: the stages of a recipe file, or for --help SCRIPT's head.
run_stages() {
    local script=$1 recipe=$2 argument
    shift 2
    for argument in "$@"; do
        if [[ $argument == --help || $argument == -h ]]; then
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
            return
        fi
    done
    # What a recipe trains or makes itself is a module of the folder `recipes`.
    local root
    root=$(cd "$(dirname "$script")/../.." && pwd)
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
    log "run $recipe $*"
    "${PYTHON:-python3}" -m fpspeech.cli run "$recipe" "$@"
    log "done"
}
