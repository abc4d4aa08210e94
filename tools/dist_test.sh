#!/usr/bin/env bash
# Evaluate with several processes: one per GPU, or, without a GPU, on the CPU.
#
# usage: tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/test.py]
# several machines: as in tools/dist_train.sh
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
exec bash "$(dirname "$0")/torchrun.sh" "$processes" test.py "$config" "$checkpoint" "$@"
