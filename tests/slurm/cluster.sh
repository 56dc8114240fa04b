#!/usr/bin/env bash
# A SLURM cluster on this host, for tests: one controller and two nodes, one with two pretend GPUs.
# Debian, root; no systemd; loopback only; no accounting database.
#
#   cluster.sh start     install what is missing with apt, start, wait until both nodes are idle
#   cluster.sh stop      cancel all jobs, stop the daemons, remove everything except the packages
#   cluster.sh status    nodes and jobs; 0 only if both nodes accept jobs
#
# Exit code 77: no cluster can be started here (no root, no package, another cluster).
#
# NULLSAE_CLUSTER  folder for everything that it writes (default /tmp/nullsae-cluster)
set -euo pipefail

DIR=${NULLSAE_CLUSTER:-/tmp/nullsae-cluster}
HOST=$(hostname -s)
ETC=/etc/slurm
SOCKET=$DIR/munge/socket
NODES=(cpu0 gpu0)
WAIT_SECONDS=60

# Callers may skip on this exit code: it is no fault of the cluster.
CANNOT=77

say() { printf 'cluster.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
cannot() { say "$*"; exit "$CANNOT"; }

# Print the pid in a pid file, if that process is alive and the right daemon.
running() {
    local daemon=$1 file=$2 pid
    [[ -s $file ]] && pid=$(<"$file") && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$daemon" ]] &&
        echo "$pid"
}

end() {
    local daemon=$1 file=$2 pid tenths
    pid=$(running "$daemon" "$file") || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for ((tenths = 0; tenths < 150; tenths++)); do
        [[ -d /proc/$pid ]] || return 0
        sleep 0.1
    done
    say "$daemon ($pid) does not end on SIGTERM; killing it"
    kill -KILL "$pid" 2>/dev/null || true
}

install() {
    local missing=()
    command -v munged >/dev/null || missing+=(munge)
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null || missing+=(slurm-wlm)
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null || cannot "${missing[*]}: not installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >"$DIR/log/apt.log" 2>&1 ||
        cannot "apt-get cannot install ${missing[*]}: $(tail -n 1 "$DIR/log/apt.log")"
}

configure() {
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=nullsae
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=16817
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Jobs of a node that went down start again only after their credentials expire.
AuthInfo=socket=$SOCKET,cred_expire=5
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
# Without cgroups, which a container may lack: a job's processes are found by process group, even
# after its shell has exited, and memory is polled.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
# One line per finished job, which tests read.
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobs.log
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
KillWait=60
InactiveLimit=0
# A node that was set down stays down.
ReturnToService=1
SlurmctldTimeout=30
SlurmdTimeout=30
# Nodes may claim more than the host has, because jobs request what a study needs elsewhere.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=cpu0 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=16818 CPUs=2 RealMemory=64000
NodeName=gpu0 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=16819 CPUs=2 RealMemory=64000 Gres=gpu:2
PartitionName=main Nodes=cpu0 Default=YES MaxTime=2-00:00:00 State=UP
PartitionName=gpu Nodes=gpu0 Default=NO MaxTime=1-00:00:00 State=UP
CONF
    # With a file per GPU, SLURM assigns device numbers.
    cat >"$DIR/gres.conf" <<CONF
NodeName=gpu0 Name=gpu File=/dev/null
NodeName=gpu0 Name=gpu File=/dev/zero
CONF
    # SLURM_CONF does not work: Snakemake's job step drops it before its own srun.
    mkdir -p "$ETC"
    local name
    for name in slurm.conf gres.conf; do
        ln -sfn "$DIR/$name" "$ETC/$name"
    done
}

ours() {
    local name
    for name in slurm.conf gres.conf; do
        [[ ! -e $ETC/$name && ! -L $ETC/$name ]] ||
            [[ $(readlink "$ETC/$name") == "$DIR/$name" ]] ||
            cannot "$ETC/$name belongs to another cluster; nothing was changed"
    done
}

ready() {
    [[ $(timeout 5 sinfo -h -N -o '%N %T' 2>/dev/null | sort -u |
        grep -cE '^(cpu0|gpu0) (idle|mixed|allocated)$') == "${#NODES[@]}" ]]
}

start() {
    [[ $(id -u) == 0 ]] || cannot "needs root"
    ours
    if running slurmctld "$DIR/slurmctld.pid" >/dev/null && ready; then return; fi
    mkdir -p "$DIR"/{munge,state,spool,log}
    chmod 755 "$DIR" "$DIR/munge" # munged insists
    install
    configure
    [[ -s $DIR/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
    running munged "$DIR/munge/pid" >/dev/null ||
        munged --socket="$SOCKET" --key-file="$DIR/munge/key" --pid-file="$DIR/munge/pid" \
            --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed"
    running slurmctld "$DIR/slurmctld.pid" >/dev/null || slurmctld -c -f "$DIR/slurm.conf"
    local node end_at=$((SECONDS + WAIT_SECONDS))
    for node in "${NODES[@]}"; do
        running slurmd "$DIR/slurmd-$node.pid" >/dev/null ||
            slurmd -c -N "$node" -f "$DIR/slurm.conf"
    done
    until ready; do
        ((SECONDS < end_at)) ||
            die "the nodes are not idle after $WAIT_SECONDS s: $(tail -n 1 "$DIR/log/slurmctld.log")"
        sleep 0.2
    done
}

stop() {
    [[ -d $DIR ]] || return 0
    ours
    local node name tries
    if running slurmctld "$DIR/slurmctld.pid" >/dev/null; then
        timeout 10 scancel --partition=main,gpu 2>/dev/null || true
        for ((tries = 0; tries < 60; tries++)); do
            [[ -n $(timeout 5 squeue -h -t PD,R,CG,CF,S -o %i 2>/dev/null) ]] || break
            sleep 0.5
        done
    fi
    for node in "${NODES[@]}"; do end slurmd "$DIR/slurmd-$node.pid"; done
    end slurmctld "$DIR/slurmctld.pid"
    end munged "$DIR/munge/pid"
    for name in slurm.conf gres.conf; do rm -f "$ETC/$name"; done
    rmdir --ignore-fail-on-non-empty "$ETC" 2>/dev/null || true
    rm -rf "$DIR"
}

status() {
    timeout 5 sinfo -N -o '%N %P %T %c %m %G' && squeue
    ready
}

case ${1:-} in
    start | stop | status) "$1" ;;
    *)
        sed -n '2,11p' "$0"
        exit 2
        ;;
esac
