#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: start a tool in several processes of this machine.
#
# usage: tools/torchrun.sh NUM_PROCESSES train.py|test.py [arguments of the tool]
# PYTHON, NNODES, NODE_RANK, MASTER_ADDR and PORT: see tools/dist_train.sh
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
processes=$1 tool=$2
shift 2
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
exec "$python" -m torch.distributed.run "${meeting[@]}" --nproc_per_node="$processes" \
    "$tools/$tool" --launcher pytorch "$@"
