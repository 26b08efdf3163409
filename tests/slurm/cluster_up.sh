#!/usr/bin/env bash
# Start a throw-away Slurm cluster on this machine, for testing job scripts.
#
#   exports=$(./cluster_up.sh [NODES]) && eval "$exports"   # 2 nodes: node1 node2
#   sbatch --nodes=2 job.sh ; ./cluster_node.sh node2 crash ; ./cluster_down.sh
#
# (eval "$(./cluster_up.sh)" works too, but hides a failure: eval of nothing succeeds.)
#
# Prints shell exports (SLURM_TEST_DIR, SLURM_CONF) on stdout, messages on stderr.
# Running it again repairs: whatever is not running is started, the rest is kept.
#
# Packages (Debian/Ubuntu), not installed by this script:
#   apt-get install -y --no-install-recommends \
#       slurmctld slurmd slurm-client munge iproute2
#
# Two modes (SLURM_TEST_MODE):
#   netns  every node is its own network, PID, mount, UTS and IPC namespace with
#          its own address, host name, munged and /dev/shm. Needs root.
#   local  every node is one more slurmd on 127.0.0.1 (needs a Slurm built with
#          --enable-multiple-slurmd, as Debian's is). Works without root. Node
#          names do not resolve unless somebody adds them to /etc/hosts.
#   auto   netns where it can be had, otherwise local (the default).
#
# Environment:
#   SLURM_TEST_DIR        state directory (default: a new mktemp directory)
#   SLURM_TEST_MODE       auto | netns | local
#   SLURM_TEST_PORT       slurmctld port; local nodes take the ports after it (26817)
#   SLURM_TEST_SUBNET     first three octets of the nodes' /24 (10.213.77)
#   SLURM_TEST_CPUS       CPUs each node claims (16; need not exist)
#   SLURM_TEST_MEM        MiB each node claims (512000; need not exist)
#   SLURM_TEST_GPUS       fake GPUs each node claims, as 8 or as h100:8 (8); they are
#                         links to /dev/null, 0 for none
#   SLURM_TEST_PARTITION  name of the default partition (gpu)
#   SLURM_TEST_FEATURES   features for --constraint, comma separated (none)
#   SLURM_TEST_TIMEOUT    seconds for SlurmdTimeout and MessageTimeout (5); a dead node
#                         is declared DOWN after about three times as long
#   SLURM_TEST_REQUEUE_DELAY  seconds a requeued job waits (10; a site has 120)
#   SLURM_TEST_KILLWAIT   seconds between SIGTERM and SIGKILL (5; a site has 30)
#   SLURM_TEST_PRIVATE    existing directories, colon separated, that are private to
#                         each node (an empty tmpfs; netns mode only). Never one
#                         that holds SLURM_TEST_DIR or the job scripts.
# shellcheck disable=SC2016  # of commands that another shell expands
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

SELF=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
MODE=${SLURM_TEST_MODE:-auto}
PORT=${SLURM_TEST_PORT:-26817}
SUBNET=${SLURM_TEST_SUBNET:-10.213.77}
CPUS=${SLURM_TEST_CPUS:-16}
MEM=${SLURM_TEST_MEM:-512000}
GPUS=${SLURM_TEST_GPUS:-8}
PARTITION=${SLURM_TEST_PARTITION:-gpu}
FEATURES=${SLURM_TEST_FEATURES:-}
TIMEOUT=${SLURM_TEST_TIMEOUT:-5}
REQUEUE_DELAY=${SLURM_TEST_REQUEUE_DELAY:-10}
KILLWAIT=${SLURM_TEST_KILLWAIT:-5}

say() { printf 'cluster_up: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- processes: run/NAME.pid holds "PID STARTTIME", so a reused pid is never ours

start_time() {
    local s
    { s=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # shellcheck disable=SC2086  # split on purpose
    set -- ${s##*) }
    [[ $1 != Z ]] || return 1 # a zombie is gone as far as we are concerned
    echo "${20}"
}

alive() {
    local pid start
    read -r pid start 2>/dev/null <"$DIR/run/$1.pid" || return 1
    [[ -n $start && $(start_time "$pid") == "$start" ]]
}

pid_of() { local p _; read -r p _ <"$DIR/run/$1.pid"; echo "$p"; }

spawn() { # NAME CMD...: start a daemon that outlives this script
    local name=$1 pid
    shift
    setsid "$@" </dev/null >>"$DIR/log/$name.err" 2>&1 &
    pid=$!
    disown "$pid"
    echo "$pid $(start_time "$pid")" >"$DIR/run/$name.pid"
}

wait_for() { # SECONDS CMD...: poll until CMD succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# ---- daemons

munge_up() { # ADDRESS [extra munged options]
    local origin=$1
    shift
    munged --force --num-threads=4 --key-file="$DIR/munge.key" --origin="$origin" \
        --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
        --seed-file="$DIR/munge/seed" --log-file="$DIR/munge/log" "$@"
}

in_node() { # NODE CMD...: run inside the node's namespaces
    local pid
    pid=$(pid_of "$1")
    shift
    nsenter --target "$pid" --net --mount --uts --ipc \
        --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

slurmd_alive() { # NODE
    local pidfile=$DIR/run/slurmd-$1
    [[ -s $pidfile ]] || return 1
    if [[ $MODE == netns ]]; then
        in_node "$1" sh -c 'kill -0 "$(cat "$1")"' sh "$pidfile" 2>/dev/null
    else
        alive "$1"
    fi
}

# PID 1 of a node. It stays after slurmd dies, as a machine does, and reaps orphans.
node_main() { # NODE ADDRESS
    local name=$1 ip=$2 d
    hostname "$name"
    mount --bind "$DIR/hosts" /etc/hosts
    mount --bind "$DIR/node/$name/munge" "$DIR/munge"
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t sysfs sysfs /sys # so that /sys/class/net is this node's
    local IFS=:
    for d in ${SLURM_TEST_PRIVATE:-}; do mount -t tmpfs -o mode=1777 tmpfs "$d"; done
    unset IFS
    ip link set lo up
    wait_for 10 ip link show eth0
    ip addr add "$ip/24" dev eth0
    ip link set eth0 up
    munge_up "$ip"
    slurmd -N "$name" -f "$SLURM_CONF"
    trap 'exit 0' TERM
    while :; do
        sleep 3600 &
        wait $! || true
    done
}

# slurmctld under a name of its own, so that what the host is called does not matter
ctld_main() {
    hostname ctld
    mount --bind "$DIR/hosts" /etc/hosts
    exec slurmctld -D -f "$SLURM_CONF"
}

case ${1:-} in # re-entered by ourselves inside new namespaces
__node | __ctld)
    DIR=$SLURM_TEST_DIR
    if [[ $1 == __node ]]; then node_main "$2" "$3"; else ctld_main; fi
    exit
    ;;
esac

# ---- checks

NODES=${1:-2}
if [[ ! $NODES =~ ^[1-9][0-9]*$ ]] || ((NODES > 200)); then die "usage: $0 [NODES], 1 to 200"; fi
for c in slurmctld slurmd sinfo munged setsid; do
    command -v "$c" >/dev/null || die "$c not found; see the package list in $SELF"
done

[[ $GPUS =~ ^([A-Za-z0-9_-]+:)?[0-9]+$ ]] || die "SLURM_TEST_GPUS=$GPUS?"

can_netns() {
    [[ $(id -u) == 0 ]] && command -v ip nsenter >/dev/null &&
        unshare --net --mount --uts --ipc --pid --fork --mount-proc true 2>/dev/null
}
case $MODE in
auto) if can_netns; then MODE=netns; else MODE=local; fi ;;
netns) can_netns || die "netns mode needs root, iproute2 and the right to unshare" ;;
local) ;;
*) die "SLURM_TEST_MODE=$MODE?" ;;
esac

DIR=${SLURM_TEST_DIR:-}
if [[ -z $DIR ]]; then
    DIR=$(mktemp -d "${TMPDIR:-/tmp}/slurm-test.XXXXXX")
else
    mkdir -p "$DIR"
    DIR=$(cd "$DIR" && pwd)
    [[ -e $DIR/.slurm-test || -z $(ls -A "$DIR") ]] ||
        die "$DIR is neither empty nor a Slurm test directory"
fi
((${#DIR} <= 70)) || die "$DIR: path too long for unix sockets"
[[ $DIR =~ ^[A-Za-z0-9_./+-]+$ ]] || die "$DIR: blanks or odd characters in the path"
export SLURM_TEST_DIR=$DIR SLURM_CONF=$DIR/slurm.conf

fresh=1
if [[ -e $DIR/.slurm-test ]]; then
    read -r was_mode was_nodes was_port was_subnet <"$DIR/.slurm-test" || true
    for f in "$DIR"/run/*.pid; do
        if [[ -e $f ]] && alive "$(basename "$f" .pid)"; then fresh=0; fi
    done
    if ((!fresh)); then
        [[ $was_nodes == "$NODES" ]] ||
            die "a cluster of $was_nodes nodes is up in $DIR; run cluster_down.sh first"
        MODE=$was_mode PORT=$was_port SUBNET=$was_subnet
    fi
fi

if [[ $MODE == netns ]]; then
    CTLD=ctld CTLD_IP=$SUBNET.254
else
    CTLD=$(hostname -s) CTLD_IP=127.0.0.1
fi
node_ip() { if [[ $MODE == netns ]]; then echo "$SUBNET.$1"; else echo 127.0.0.1; fi; }

# ---- files of a fresh cluster

write_config() {
    rm -rf "${DIR:?}"/{run,log,munge,node,state,dev}
    mkdir -p "$DIR"/{run,log,munge,state,dev}
    chmod 755 "$DIR" "$DIR/munge"
    echo "$MODE $NODES $PORT $SUBNET" >"$DIR/.slurm-test"
    rm -f "$DIR/munge.key"
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")

    local i n=${GPUS##*:} type='' gres='' feat='' node_lines=''
    if [[ $GPUS == *:* ]]; then type=" Type=${GPUS%%:*}"; fi
    : >"$DIR/gres.conf"
    if ((n > 0)); then # each needs a character device; a GPU without File= does not count
        gres=" Gres=gpu:$GPUS"
        for ((i = 0; i < n; i++)); do ln -s /dev/null "$DIR/dev/nvidia$i"; done
        echo "Name=gpu$type File=$DIR/dev/nvidia[0-$((n - 1))]" >"$DIR/gres.conf"
    fi
    [[ -z $FEATURES ]] || feat=" Feature=$FEATURES"

    printf '127.0.0.1 localhost\n%s %s\n' "$CTLD_IP" "$CTLD" >"$DIR/hosts"
    for ((i = 1; i <= NODES; i++)); do
        mkdir -p "$DIR/node/node$i"/{munge,spool}
        chmod 755 "$DIR/node/node$i"/{munge,spool}
        echo "$(node_ip "$i") node$i" >>"$DIR/hosts"
        node_lines+="NodeName=node$i NodeAddr=$(node_ip "$i")"
        if [[ $MODE == local ]]; then
            node_lines+=" NodeHostname=$CTLD Port=$((PORT + i))"
        fi
        node_lines+=" CPUs=$CPUS RealMemory=$MEM$gres$feat"$'\n'
    done

    # Listen on the cluster's own address only. Not in local mode: what matters there is
    # what the host's name resolves to, which may be any of its addresses.
    local bind='#'
    if [[ $MODE == netns ]]; then bind='CommunicationParameters=NoCtldInAddrAny'; fi

    # No plugin below uses cgroups, but slurmd sets one up all the same. 23.11 and later
    # can leave it out; to earlier ones v1 is the plugin that asks nothing of the host.
    local cgroup=cgroup/v1 v
    v=$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
    if [[ $(printf '%s\n' 23.11 "$v" | sort -V | head -n 1) == 23.11 ]]; then cgroup=disabled; fi
    echo "CgroupPlugin=$cgroup" >"$DIR/cgroup.conf"

    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$CTLD($CTLD_IP)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
$bind
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket,cred_expire=$REQUEUE_DELAY
CredType=cred/munge

StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/node/%n/spool
SlurmctldPidFile=$DIR/run/slurmctld
SlurmdPidFile=$DIR/run/slurmd-%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log

# nothing that needs cgroups, a database or the hardware that the nodes claim
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PropagateResourceLimits=NONE

# quick, where a site is slow
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmctldTimeout=$TIMEOUT
SlurmdTimeout=$TIMEOUT
KillWait=$KILLWAIT
MessageTimeout=$TIMEOUT
MinJobAge=86400

# failures and preemption
EnforcePartLimits=ALL
JobRequeue=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

$node_lines
PartitionName=$PARTITION Nodes=ALL Default=YES PriorityTier=1 GraceTime=$KILLWAIT MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
}

# ---- bring up

switch_up() { # a bridge in a namespace of its own: the host's firewall never sees it
    local sw host_if=slt$PORT
    spawn switch unshare --net sleep infinity
    sw=$(pid_of switch)
    wait_for 10 sh -c "[ \"\$(readlink /proc/$sw/ns/net)\" != \"\$(readlink /proc/self/ns/net)\" ]"
    nsenter --target "$sw" --net ip link add br0 type bridge
    nsenter --target "$sw" --net ip link set br0 up
    wait_for 5 sh -c "! ip link show $host_if" || die "$host_if exists: another cluster on this port?"
    ip link add "$host_if" type veth peer name uplink netns "$sw"
    nsenter --target "$sw" --net ip link set uplink master br0 up
    ip addr add "$CTLD_IP/24" dev "$host_if"
    ip link set "$host_if" up
}

node_up() { # INDEX
    local name=node$1 ip sw pid
    ip=$(node_ip "$1")
    if [[ $MODE == local ]]; then
        if ! alive "$name"; then spawn "$name" slurmd -D -N "$name" -f "$SLURM_CONF"; fi
        return
    fi
    if alive "$name"; then
        slurmd_alive "$name" || in_node "$name" slurmd -N "$name" -f "$SLURM_CONF"
        return
    fi
    rm -f "$DIR/run/slurmd-$name" "$DIR/node/$name"/munge/*
    spawn "$name" unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
        bash "$SELF" __node "$name" "$ip"
    sw=$(pid_of switch)
    pid=$(pid_of "$name")
    wait_for 10 sh -c "[ \"\$(readlink /proc/$pid/ns/net)\" != \"\$(readlink /proc/self/ns/net)\" ]"
    nsenter --target "$sw" --net ip link del "$name" 2>/dev/null || true
    nsenter --target "$sw" --net ip link add "$name" type veth peer name eth0 netns "$pid"
    nsenter --target "$sw" --net ip link set "$name" master br0 up
}

all_up() { [[ $(timeout 5 sinfo -h -N -o '%N %T' -p urgent 2>/dev/null | grep -cE ' (idle|mixed|allocated|completing|drain(ed|ing))$') == "$NODES" ]]; }

on_exit() {
    local rc=$?
    if ((rc)); then
        say "failed; the ends of the logs follow"
        tail -n 20 "$DIR"/log/* "$DIR"/munge/log >&2 2>/dev/null || true
        if ((fresh)); then "$(dirname "$SELF")/cluster_down.sh" >&2 || true; fi
    fi
}
trap on_exit EXIT

if ((fresh)); then write_config; fi
if [[ $MODE == netns ]]; then alive switch || switch_up; fi
alive munged || {
    rm -f "$DIR/munge/socket"*
    munge_up "$CTLD_IP"
    read -r pid <"$DIR/munge/pid"
    echo "$pid $(start_time "$pid")" >"$DIR/run/munged.pid"
}
alive slurmctld || if [[ $MODE == netns ]]; then
    spawn slurmctld unshare --mount --uts bash "$SELF" __ctld
else
    spawn slurmctld slurmctld -D -f "$SLURM_CONF"
fi
for ((i = 1; i <= NODES; i++)); do node_up "$i"; done
until all_up; do
    alive slurmctld || die "slurmctld died"
    for ((i = 1; i <= NODES; i++)); do alive "node$i" || die "node$i died"; done
    ((SECONDS < 60)) || die "not every node came up: $(sinfo -h -N -o '%N=%T(%E)' 2>&1 | sort -u | tr '\n' ' ')"
    sleep 0.1
done

say "$MODE cluster of $NODES nodes is up after $SECONDS s in $DIR"
printf 'export SLURM_TEST_DIR=%q\nexport SLURM_CONF=%q\n' "$DIR" "$SLURM_CONF"
