#!/usr/bin/env bash
# Make a node of the test cluster fail, or run something on it.
#
#   ./cluster_node.sh NODE kill-slurmd    # the daemon dies (SIGKILL), job processes stay
#   ./cluster_node.sh NODE start-slurmd   # ... and comes back
#   ./cluster_node.sh NODE crash          # as if it lost power: no process, no packet (netns)
#   ./cluster_node.sh NODE unplug|plug    # the network link goes down, up (netns)
#   ./cluster_node.sh NODE exec CMD...    # run CMD on the node (netns)
#
# A crashed node boots again when cluster_up.sh is run again.
# shellcheck disable=SC2016  # of commands that another shell expands
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

DIR=${SLURM_TEST_DIR:-$(dirname "${SLURM_CONF:?eval the output of cluster_up.sh first}")}
export SLURM_CONF=$DIR/slurm.conf
node=${1:?node name} action=${2:?action}
shift 2
read -r mode nodes _ <"$DIR/.slurm-test"
read -r pid _ <"$DIR/run/$node.pid"

in_node() {
    nsenter --target "$pid" --net --mount --uts --ipc \
        --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

link() { # up|down, at the switch's end of the cable
    local switch _
    read -r switch _ <"$DIR/run/switch.pid"
    nsenter --target "$switch" --net ip link set "$node" "$1"
}

if [[ $mode == local ]]; then
    case $action in
    kill-slurmd) kill -KILL "$pid" ;;
    start-slurmd) SLURM_TEST_DIR=$DIR "$(dirname "${BASH_SOURCE[0]}")/cluster_up.sh" "$nodes" >/dev/null ;;
    *) echo "cluster_node: $action needs netns mode" >&2; exit 1 ;;
    esac
    exit
fi
case $action in
kill-slurmd) in_node sh -c 'kill -KILL "$(cat "$1")" && rm -f "$1"' sh "$DIR/run/slurmd-$node" ;;
start-slurmd) in_node slurmd -N "$node" -f "$SLURM_CONF" ;;
unplug) link down ;;
plug) link up ;;
crash)
    link down # first, so that its peers get no reset: they must find out by themselves
    kill -KILL "$pid"
    ;;
exec) in_node "$@" ;;
*) echo "cluster_node: unknown action $action" >&2; exit 1 ;;
esac
