#!/usr/bin/env bash
# FSDD: a base model of four speakers, personalized to the two left out.
#   recipes/fsdd/run.sh [--stage N] [--stop-stage N] [--exp DIR] [--data-dir DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."

stage=0 stop_stage=4 exp=exp/fsdd data_dir="" python=${PYTHON:-python3}
speakers=(theo nicolas)

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --stage) stage=$2 ;;
        --stop-stage) stop_stage=$2 ;;
        --exp) exp=$2 ;;
        --data-dir) data_dir=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

wanted() { [[ $stage -le $1 && $1 -le $stop_stage ]]; }
from=(--model "$exp/model" --audio "$exp/manifest.jsonl")

if wanted 0; then
    log "stage 0: manifests in $exp"
    $python -m recipes.fsdd.prepare "$exp/manifest.jsonl" ${data_dir:+--data-dir "$data_dir"}
fi

if wanted 1 && [[ ! -f $exp/model/config.json ]]; then
    log "stage 1: train the base model (resumes from $exp/checkpoint.pt)"
    $python -m recipes.fsdd.train "$exp/training.jsonl" "$exp" "$exp/model" --init data/demo/model
fi

if wanted 2; then
    for speaker in "${speakers[@]}"; do
        [[ -d $exp/personal/$speaker ]] && { log "stage 2: $speaker is there"; continue; }
        log "stage 2: personalize to $speaker"
        fpspeech personalize --speaker "$speaker" "${from[@]}" --sparsity 0.7 \
            --out "$exp/personal/$speaker"
    done
fi

if wanted 3; then
    for speaker in "${speakers[@]}"; do
        log "stage 3: evaluate $speaker"
        fpspeech evaluate "$exp/personal/$speaker" "${from[@]}"
    done
fi

if wanted 4 && [[ ! -f $exp/table/table.md ]]; then
    log "stage 4: the table, in $exp/table"
    fpspeech compare "${from[@]}" --speaker theo --speaker nicolas \
        --method obs+least_squares --method fine_pruning+least_squares \
        --method fine_pruning --method magnitude --method random \
        --sparsity 0.3 --sparsity 0.5 --sparsity 0.7 --out "$exp/table"
fi
log "done"
