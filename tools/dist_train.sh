#!/usr/bin/env bash
# Train with several processes: one per GPU, or, without a GPU, on the CPU.
#
# usage: tools/dist_train.sh CONFIG NUM_PROCESSES [arguments of tools/train.py]
# several machines: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine PORT=29500 on the first,
#                   NODE_RANK=1 on the second
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
exec bash "$(dirname "$0")/torchrun.sh" "$processes" train.py "$config" "$@"
