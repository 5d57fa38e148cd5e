#!/usr/bin/env bash
# LibriSpeech: read English, personalized speaker by speaker.
#   recipes/librispeech/run.sh [--stage N] [--stop-stage N] [--speaker NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --speaker and --sparsity may be given several times; settings are in librispeech.yaml.
set -euo pipefail

recipe=$(dirname "$0")/librispeech.yaml python=${PYTHON:-python3}

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*" >&2; }

for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then
        sed -n '2,6s/^# \{0,1\}//p' "$0"
        exit 0
    fi
done

log "run $recipe $*"
$python -m fpspeech.cli run "$recipe" "$@"
log "done"
