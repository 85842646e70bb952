#!/usr/bin/env bash
# SmolLM2-135M on all 400 rows of forget10 and 800 of retain90: methods, a grid of lambda, seeds at
# the chosen one; in pieces of at most nine minutes, each started by the same command. What must
# outlive a machine is small and lies under "${OUT:-runs/table}/state"; a new machine gets it by
# --state. At the end table.json and table.md lie beside it.
#
#   tests/gpu/table.sh --root DIR                                      on a GPU; 3: more to do
#   tests/gpu/table.sh --root DIR --rows 4 --device cpu --small        the same programs, to try them
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" tests/gpu/table.py --out "${OUT:-runs/table}" "$@"
