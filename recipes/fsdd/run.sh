#!/usr/bin/env bash
# FSDD: a base model of four speakers, personalized to the two left out.
#   recipes/fsdd/run.sh [--stage N] [--stop-stage N] [--speaker NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, model, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --speaker and --sparsity may be given several times; settings are in fsdd.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/fsdd.yaml" "$@"
