#!/usr/bin/env bash
# L2-ARCTIC: English read by people of six first languages.
#   recipes/l2_arctic/run.sh [--stage N] [--stop-stage N] [--speaker NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --speaker and --sparsity may be given several times; settings are in l2_arctic.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/l2_arctic.yaml" "$@"
