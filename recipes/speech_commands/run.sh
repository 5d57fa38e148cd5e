#!/usr/bin/env bash
# Speech Commands 0.02: single words by many people, 20 recordings or more each.
#   recipes/speech_commands/run.sh [--stage N] [--stop-stage N] [--speaker NAME] [--model MODEL]
#       [--sparsity S] [--data-dir DIR] [--exp DIR] [--device D]
# Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (off by default).
# --speaker and --sparsity may be given several times; settings are in speech_commands.yaml.
set -euo pipefail

here=$(dirname "$0")
source "$here/../run_stages.sh"
run_stages "$0" "$here/speech_commands.yaml" "$@"
