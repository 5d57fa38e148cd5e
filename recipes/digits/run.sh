#!/usr/bin/env bash
# Handwritten digits: a small ResNet, personalized to users of three digits each.
#   recipes/digits/run.sh [--stage N] [--stop-stage N] [--exp DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."

stage=1 stop_stage=5 exp=exp/digits python=${PYTHON:-python3}
users=(anna bruno clara dario)

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --stage) stage=$2 ;;
        --stop-stage) stop_stage=$2 ;;
        --exp) exp=$2 ;;
        *) sed -n '2,3p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

wanted() { [[ $stage -le $1 && $1 -le $stop_stage ]]; }
recipe=$exp/digits.yaml

if wanted 1 && [[ ! -f $recipe ]]; then
    log "stage 1: pictures into $exp"
    $python -m recipes.digits.prepare "$exp"
    sed "s|exp/digits|$exp|" recipes/digits/digits.yaml > "$recipe"
fi

if wanted 2 && [[ ! -f $exp/trained ]]; then
    log "stage 2: train the base model into $exp/model"
    $python -m recipes.digits.train "$exp/training" "$exp/model"
    touch "$exp/trained"
fi

for user in "${users[@]}"; do
    if wanted 3 && [[ ! -f $exp/personal/$user/fpspeech.json ]]; then
        log "stage 3: personalize to $user"
        $python -m fpspeech.cli personalize --recipe "$recipe" --user "$user" \
            --out "$exp/personal/$user"
    fi
    if wanted 4; then
        log "stage 4: four numbers for $user"
        $python -m fpspeech.cli evaluate "$exp/personal/$user" --recipe "$recipe" --user "$user"
    fi
done

if wanted 5; then
    log "stage 5: the table, in $exp/table"
    $python -m recipes.image_table "$recipe" "$exp/table"
fi
log "done"
