#!/usr/bin/env bash
# Rebuilds data/demo: synthetic speech, the base model, six speakers.
#   recipes/demo/run.sh [--stage N] [--stop-stage N] [--exp DIR] [--data DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."

stage=1 stop_stage=4 exp=exp/demo data=data/demo python=${PYTHON:-python3}

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --stage) stage=$2 ;;
        --stop-stage) stop_stage=$2 ;;
        --exp) exp=$2 ;;
        --data) data=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

wanted() { [[ $stage -le $1 && $1 -le $stop_stage ]]; }

if wanted 1; then
    if [[ -f $exp/training/utterances.jsonl ]]; then
        log "stage 1: $exp/training is there"
    else
        log "stage 1: synthesise training and validation speech into $exp"
        $python -m recipes.demo.corpus training "$exp"
    fi
fi

if wanted 2; then
    if [[ -f $data/manifest.jsonl ]]; then
        log "stage 2: $data/manifest.jsonl is there"
    else
        log "stage 2: record the six demo speakers into $data"
        $python -m recipes.demo.corpus speakers "$data"
    fi
fi

if wanted 3; then
    if [[ -f $data/model/config.json ]]; then
        log "stage 3: $data/model is there"
    else
        log "stage 3: train the base model (resumes from $exp/checkpoint.pt)"
        $python -m recipes.demo.train "$exp" "$data/model"
    fi
fi

if wanted 4; then
    log "stage 4: word error rate of the base model"
    $python -m recipes.dense_error "$data/model" "$data/manifest.jsonl"
fi
log "done"
