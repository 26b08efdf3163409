#!/usr/bin/env bash
# Stop the Slurm cluster that cluster_up.sh started, and every job process in it.
#
#   ./cluster_down.sh [--rm]     # --rm also removes the state directory (logs, config)
#
# Finds it by SLURM_TEST_DIR, or by SLURM_CONF. Signals only processes whose pid and
# start time cluster_up.sh recorded, and what lives in the namespaces they made.
# Doing it twice is harmless.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

DIR=${SLURM_TEST_DIR:-}
if [[ -z $DIR && -n ${SLURM_CONF:-} ]]; then DIR=$(dirname "$SLURM_CONF"); fi
[[ -n $DIR ]] || { echo "cluster_down: set SLURM_TEST_DIR or SLURM_CONF" >&2; exit 1; }
[[ -d $DIR ]] || exit 0
[[ -e $DIR/.slurm-test ]] || { echo "cluster_down: $DIR is not a Slurm test directory" >&2; exit 1; }

start_time() {
    local s
    { s=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # shellcheck disable=SC2086  # split on purpose
    set -- ${s##*) }
    [[ $1 != Z ]] || return 1 # a zombie is gone as far as we are concerned
    echo "${20}"
}

alive() { # PIDFILE; sets pid
    local start
    pid=
    read -r pid start 2>/dev/null <"$1" || return 1
    [[ -n $start && $(start_time "$pid") == "$start" ]]
}

stop() { # SIGNAL PIDFILE...: signal them all, then wait; SIGKILL after 5 s
    local sig=$1 f end=$((SECONDS + 5))
    shift
    for f in "$@"; do
        if alive "$f"; then kill "-$sig" "$pid" 2>/dev/null || true; fi
    done
    for f in "$@"; do
        while alive "$f"; do
            if ((SECONDS >= end)); then kill -KILL "$pid" 2>/dev/null || true; fi
            sleep 0.05
        done
        rm -f "$f"
    done
}

read -r mode _ port _ <"$DIR/.slurm-test" || true
shopt -s nullglob

if [[ $mode == local && -e $DIR/run/slurmctld.pid ]] && alive "$DIR/run/slurmctld.pid"; then
    # no namespace to take the job processes down with: ask Slurm to
    export SLURM_CONF=$DIR/slurm.conf
    scancel --full --quiet --state=RUNNING --user="$(id -un)" 2>/dev/null || true
    scancel --quiet --user="$(id -un)" 2>/dev/null || true
    for _ in {1..100}; do
        [[ -n $(squeue -h 2>/dev/null) ]] || break
        sleep 0.1
    done
fi
stop TERM "$DIR"/run/slurmctld.pid
if [[ $mode == local ]]; then
    stop TERM "$DIR"/run/node*.pid
else
    stop KILL "$DIR"/run/node*.pid # takes each node's PID namespace with it
fi
stop TERM "$DIR"/run/munged.pid
if [[ -e $DIR/run/switch.pid ]]; then
    stop TERM "$DIR"/run/switch.pid # takes the bridge and the nodes' links with it,
    ip link del "slt$port" 2>/dev/null || true # and this one, but not at once
fi

if [[ ${1:-} == --rm ]]; then
    for _ in {1..50}; do rm -rf "$DIR" 2>/dev/null && break; sleep 0.1; done
else
    rm -rf "${DIR:?}"/{run,munge,munge.key}
    echo "cluster_down: stopped; logs are in $DIR/log" >&2
fi
