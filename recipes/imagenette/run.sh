#!/usr/bin/env bash
# Imagenette: ResNet-50 personalized to users of three of its ten classes.
#   recipes/imagenette/run.sh [--stage N] [--stop-stage N] [--exp DIR] [--recipe FILE] [--device D]
set -euo pipefail
cd "$(dirname "$0")/../.."

stage=1 stop_stage=3 exp=exp/imagenette device=auto python=${PYTHON:-python3}
recipe=recipes/imagenette/imagenette.yaml # or hub.yaml
users=(angler musician driver)

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --stage) stage=$2 ;;
        --stop-stage) stop_stage=$2 ;;
        --exp) exp=$2 ;;
        --recipe) recipe=$2 ;;
        --device) device=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

wanted() { [[ $stage -le $1 && $1 -le $stop_stage ]]; }

for user in "${users[@]}"; do
    if wanted 1 && [[ ! -f $exp/personal/$user/fpspeech.json ]]; then
        log "stage 1: personalize to $user"
        $python -m fpspeech.cli personalize --recipe "$recipe" --user "$user" \
            --device "$device" --out "$exp/personal/$user"
    fi
    if wanted 2; then
        log "stage 2: four numbers for $user"
        $python -m fpspeech.cli evaluate "$exp/personal/$user" --recipe "$recipe" \
            --user "$user" --device "$device"
    fi
done

if wanted 3; then
    log "stage 3: the table, in $exp/table"
    $python -m recipes.image_table "$recipe" "$exp/table" --device "$device" \
        --method obs+least_squares --method fine_pruning --method wanda \
        --method magnitude --method random
fi
log "done"
