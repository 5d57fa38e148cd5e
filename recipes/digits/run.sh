#!/usr/bin/env bash
# Handwritten digits: a small ResNet, personalized to users of three digits each.
#   recipes/digits/run.sh [--stage N] [--stop-stage N] [--user NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, model, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --user and --sparsity may be given several times; settings are in digits.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/digits.yaml" "$@"
