#!/usr/bin/env bash
# ImageNet-1k: ResNet-50 personalized to users of 5 to 100 classes.
#   recipes/imagenet/run.sh [--stage N] [--stop-stage N] [--exp DIR] [--user NAME] [--device D]
set -euo pipefail
cd "$(dirname "$0")/../.."

stage=1 stop_stage=4 exp=exp/imagenet device=auto python=${PYTHON:-python3}
users=(five-a five-b five-c ten twenty-five fifty hundred)

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --stage) stage=$2 ;;
        --stop-stage) stop_stage=$2 ;;
        --exp) exp=$2 ;;
        --user) users=("$2") ;;
        --device) device=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

wanted() { [[ $stage -le $1 && $1 -le $stop_stage ]]; }
recipe=$exp/imagenet.yaml

if wanted 1; then
    log "stage 1: photos of the training and validation set into $exp"
    $python -m recipes.imagenet.collect train "$exp/adapt" --per-class 50
    $python -m recipes.imagenet.collect validation "$exp/test" --per-class 50
    sed "s|exp/imagenet|$exp|" recipes/imagenet/imagenet.yaml > "$recipe"
fi

for user in "${users[@]}"; do
    if wanted 2 && [[ ! -f $exp/personal/$user/fpspeech.json ]]; then
        log "stage 2: personalize to $user"
        $python -m fpspeech.cli personalize --recipe "$recipe" --user "$user" \
            --device "$device" --out "$exp/personal/$user"
    fi
    if wanted 3; then
        log "stage 3: four numbers for $user"
        $python -m fpspeech.cli evaluate "$exp/personal/$user" --recipe "$recipe" \
            --user "$user" --device "$device"
    fi
    if wanted 4; then
        log "stage 4: the table of $user, in $exp/table/$user"
        $python -m recipes.image_table "$recipe" "$exp/table/$user" --user "$user" \
            --device "$device" --method obs+least_squares --method fine_pruning --method wanda \
            --method magnitude --method random
    fi
done
log "done"
