#!/usr/bin/env bash
# All that wants a GPU, in less than ten minutes: the tests of this folder, a training step's speed,
# the output head and what waits for the device, in pieces of which a second start makes only those
# that are missing. Each leaves a file, and all together gpu.json, under "${OUT:-runs/gpu}".
#
#   tests/gpu/run.sh                       on a GPU
#   tests/gpu/run.sh --device cpu --small  the same programs in seconds, to try them: no figures
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" tests/gpu/pieces.py --out "${OUT:-runs/gpu}" "$@"
