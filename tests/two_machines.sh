#!/usr/bin/env bash
# Two "machines" (network namespaces joined by a cable) train together: see test_distributed.py.
#
# usage: unshare -rmn bash tests/two_machines.sh TOOL.sh [arguments]
set -euo pipefail
mount -t tmpfs none /run
for node in 0 1; do
    ip netns add "machine$node"
    ip -n "machine$node" link set lo up
done
ip link add eth0 netns machine0 type veth peer name eth0 netns machine1
for node in 0 1; do
    ip -n "machine$node" addr add "10.7.7.$((node + 1))/24" dev eth0
    ip -n "machine$node" link set eth0 up
done
export NNODES=2 MASTER_ADDR=10.7.7.1 PORT=29500 GLOO_SOCKET_IFNAME=eth0
NODE_RANK=1 ip netns exec machine1 "$@" &
NODE_RANK=0 ip netns exec machine0 "$@"
wait %1
