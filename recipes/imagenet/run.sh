#!/usr/bin/env bash
# ImageNet-1k: ResNet-50 personalized to users of 5 to 100 classes.
#   recipes/imagenet/run.sh [--stage N] [--stop-stage N] [--user NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --user and --sparsity may be given several times; settings are in imagenet.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/imagenet.yaml" "$@"
