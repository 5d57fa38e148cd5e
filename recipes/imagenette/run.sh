#!/usr/bin/env bash
# Imagenette: ResNet-50 personalized to users of three of its ten classes.
#   recipes/imagenette/run.sh [--stage N] [--stop-stage N] [--user NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --user and --sparsity may be given several times; settings are in imagenette.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/imagenette.yaml" "$@"
