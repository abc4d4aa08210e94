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
tools=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    meeting=(--standalone) # a free port, so that several trainings share a machine
else
    if [ "${NODE_RANK:-0}" = 0 ] && ! "$python" -c "import socket; socket.socket().bind(('', ${PORT:-29500}))" 2>/dev/null; then
        echo "error: port ${PORT:-29500} is in use on this machine: give another one with PORT=…" >&2
        exit 2
    fi
    meeting=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
fi
exec "$python" -m torch.distributed.run "${meeting[@]}" \
    --nproc_per_node="$processes" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
