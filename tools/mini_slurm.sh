#!/usr/bin/env bash
# A real Slurm with two nodes on this one machine, for tests and for trying things out.
#
#   tools/mini_slurm.sh install            Debian's packages (76 MB); nothing of them is started
#   tools/mini_slurm.sh start              up in seconds; then: eval "$(tools/mini_slurm.sh env)"; sinfo
#   tools/mini_slurm.sh stop | status      stop leaves no process; accounting and logs stay in the folder
#   tools/mini_slurm.sh kill-node N        a power cut of node N; start-node N brings it back
#   tools/mini_slurm.sh env                what a client's shell needs
#
# Controller, accounting (slurmdbd, MariaDB), munge, nodes node1 and node2 with 16 pretended CPUs and four
# pretended GPUs each; partition "low", and "high", which preempts it (requeue). Everything lives in
# MINI_SLURM_DIR (default: under TMPDIR); ports are MINI_SLURM_PORT (default 17000) and the twenty after it,
# so several clusters can run at once. Needs root and Debian or Ubuntu; no systemd, no containers, no cgroups.
set -uo pipefail

DIR="${MINI_SLURM_DIR:-${TMPDIR:-/tmp}/mini-slurm-$(id -u)}"
PORT="${MINI_SLURM_PORT:-17000}"
NODES=2 CPUS=16 GPUS=4 MEMORY_MB=16000
PACKAGES="munge slurmctld slurmd slurmdbd slurm-client mariadb-server-core mariadb-client-core"
DAEMONS="munged mariadbd slurmdbd slurmctld"
ACCOUNT=lab
# Addresses of the loopback network that no other cluster uses: its port is part of them.
NETWORK="127.$((PORT / 256)).$((PORT % 256))"
CONTROLLER="$NETWORK.1" ACCOUNTING_PORT=$((PORT + 1)) DATABASE_PORT=$((PORT + 2))
SOCKET="$DIR/munge/socket"
export SLURM_CONF="$DIR/etc/slurm.conf"

say() { echo "mini_slurm: $*"; }

fail() {
    echo "mini_slurm: $*" >&2
    exit 1
}

# fail_with_log NAME SENTENCE: the end of a daemon's log says more than we can.
fail_with_log() {
    tail -n 8 "$DIR/log/$1.log" >&2 2>/dev/null
    fail "$2 Log: $DIR/log/$1.log"
}

# within SECONDS COMMAND...: waits until the command succeeds; fails when the time is over.
within() {
    local tries=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.1
    done
}

not() { ! "$@"; }
listens() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# --- processes: "pid start-tick" in run/NAME, so that a pid that was used again is never killed

start_tick() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# runs NAME: whether that process lives; sets PID.
runs() {
    local tick
    PID=""
    [ -r "$DIR/run/$1" ] && read -r PID tick <"$DIR/run/$1" && [ "$(start_tick "$PID")" = "$tick" ] &&
        [ "$(sed 's/.*) //' "/proc/$PID/stat" 2>/dev/null | cut -c1)" != Z ]
}

spawn() {
    local name="$1"
    shift
    setsid "$@" </dev/null >>"$DIR/log/$name.log" 2>&1 &
    echo "$! $(start_tick $!)" >"$DIR/run/$name"
    disown
}

end() {
    runs "$1" || { rm -f "$DIR/run/$1"; return; }
    kill -TERM "$PID"
    within 10 not runs "$1" || { runs "$1" && kill -KILL "$PID"; }
    within 5 not runs "$1" && rm -f "$DIR/run/$1"
}

# The first process of a node's namespace: with it the kernel ends all the others, jobs included, and
# `unshare` returns only when the last of them is gone.
end_node() {
    runs "node$1" || { rm -f "$DIR/run/node$1"; return; }
    pkill -KILL -P "$PID" || kill -KILL "$PID"
    within 5 not runs "node$1" && rm -f "$DIR/run/node$1"
}

# --- installing

missing_packages() {
    local package
    for package in $PACKAGES; do
        [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || echo "$package"
    done
}

need_root() { [ "$(id -u)" = 0 ] || fail "needs root: namespaces, device nodes and munge. Run it with sudo."; }

need_packages() {
    command -v dpkg-query >/dev/null || fail "needs Debian or Ubuntu: there is no dpkg here."
    local missing
    missing="$(missing_packages | tr '\n' ' ')"
    [ -z "$missing" ] || fail "these packages are missing: $missing. Run: tools/mini_slurm.sh install"
}

install() {
    need_root
    command -v apt-get >/dev/null || fail "needs Debian or Ubuntu: there is no apt-get here."
    local missing log policy=/usr/sbin/policy-rc.d
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" != 0 ] || { say "all packages are installed"; return; }
    say "installing ${missing[*]}"
    log="$(mktemp)"
    # Debian's policy hook: no daemon starts by being installed.
    # shellcheck disable=SC2064  # the paths of now
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && trap "rm -f $policy $log" EXIT; }
    export DEBIAN_FRONTEND=noninteractive
    local options=(-qq -o DPkg::Lock::Timeout=300)
    apt-get "${options[@]}" update >"$log" 2>&1
    apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; fail "apt-get could not install ${missing[*]}. Check the network and the lines above."; }
}

# --- configuration

node_lines() {
    local n
    for ((n = 1; n <= NODES; n++)); do
        echo "NodeName=node$n NodeHostname=node$n NodeAddr=$NETWORK.$((10 + n)) Port=$((PORT + 10 + n))" \
            "CPUs=$CPUS RealMemory=$MEMORY_MB Gres=gpu:$GPUS"
    done
}

write_hosts() {
    local n
    printf '127.0.0.1 localhost\n%s %s\n' "$CONTROLLER" "$(hostname -s)"
    for ((n = 1; n <= NODES; n++)); do echo "$NETWORK.$((10 + n)) node$n"; done
}

# cred_expire: a requeued job waits so long (and 1 s) before it may start; 5 is the least, 120 the default.
# AccountingStoragePass: where the controller finds munge for slurmdbd; without it, it ends with "no TRES".
# The waits (timeouts, KillWait) are short: a dead node is noticed within twenty seconds.
write_slurm_conf() {
    cat <<END
ClusterName=mini
SlurmctldHost=$(hostname -s)($CONTROLLER)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET,cred_expire=5
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/%n.pid
SlurmdSpoolDir=$DIR/spool/%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$CONTROLLER
AccountingStoragePort=$ACCOUNTING_PORT
AccountingStoragePass=$SOCKET
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SlurmctldTimeout=10
SlurmdTimeout=15
MessageTimeout=10
TCPTimeout=2
BatchStartTimeout=10
KillWait=1
CompleteWait=0
MinJobAge=3600
InactiveLimit=0
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
$(node_lines)
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
}

write_slurmdbd_conf() {
    cat <<END
AuthType=auth/munge
AuthInfo=socket=$SOCKET
DbdHost=$(hostname -s)
DbdAddr=$CONTROLLER
DbdPort=$ACCOUNTING_PORT
SlurmUser=root
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
END
}

write_database_init() {
    cat <<END
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
END
}

configure() {
    local n g
    mkdir -p "$DIR"/{etc,munge,db,state,log,run,dev} || fail "$DIR cannot be made. Set MINI_SLURM_DIR."
    chmod 755 "$DIR" "$DIR/munge"
    [ -s "$DIR/munge/key" ] || (umask 377 && head -c 128 /dev/urandom >"$DIR/munge/key")
    # Clones of /dev/null: Slurm counts them as GPUs and hands out CUDA_VISIBLE_DEVICES. Regular files fail.
    for ((g = 0; g < GPUS; g++)); do [ -c "$DIR/dev/nvidia$g" ] || mknod "$DIR/dev/nvidia$g" c 1 3; done
    for ((n = 1; n <= NODES; n++)); do mkdir -p "$DIR/spool/node$n"; done
    write_hosts >"$DIR/etc/hosts"
    write_slurm_conf >"$SLURM_CONF"
    (umask 077 && write_slurmdbd_conf >"$DIR/etc/slurmdbd.conf")
    write_database_init >"$DIR/db/init.sql"
    printf 'AutoDetect=off\nNodeName=node[1-%d] Name=gpu File=%s/dev/nvidia[0-%d]\n' \
        "$NODES" "$DIR" $((GPUS - 1)) >"$DIR/etc/gres.conf"
}

# --- starting, in the order in which one needs the other

start_munge() {
    rm -f "$SOCKET"*
    spawn munged munged -F --key-file="$DIR/munge/key" --socket="$SOCKET" --pid-file="$DIR/run/munged.pid" \
        --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
    within 10 test -S "$SOCKET" || fail_with_log munged "munged made no socket."
}

start_database() {
    local options=(--no-defaults --user=root --datadir="$DIR/db/data" --innodb-log-file-size=8M)
    [ -d "$DIR/db/data/mysql" ] ||
        timeout 60 mariadb-install-db "${options[@]}" --auth-root-authentication-method=normal --skip-test-db \
            >"$DIR/log/mariadb-install.log" 2>&1 || fail_with_log mariadb-install "The database could not be made."
    spawn mariadbd mariadbd "${options[@]}" --socket="$DIR/db/socket" --pid-file="$DIR/run/mariadbd.pid" \
        --bind-address=127.0.0.1 --port="$DATABASE_PORT" --skip-name-resolve --skip-log-bin \
        --performance-schema=OFF --key-buffer-size=1M --innodb-buffer-pool-size=64M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --init-file="$DIR/db/init.sql"
    within 30 listens 127.0.0.1 "$DATABASE_PORT" || fail_with_log mariadbd "The database does not listen."
}

start_node() {
    runs "node$1" && return
    spawn "node$1" unshare --uts --mount --pid --fork --kill-child=SIGKILL --mount-proc bash -c \
        "hostname node$1 && mount --bind '$DIR/etc/hosts' /etc/hosts && export HOSTNAME=node$1 && { slurmd -D -N node$1 & wait; }"
}

nodes_up() { [ "$(timeout 5 sinfo -h -N -p low -o %T | grep -cE '^(idle|mixed|allocated)$')" = "$NODES" ]; }

settled() { nodes_up || not runs slurmctld; } # an error in the configuration ends it at once

add_user() {
    local sacctmgr=(timeout 20 sacctmgr -i) user
    user="$(id -un)"
    "${sacctmgr[@]}" add account $ACCOUNT Description=tests Organization=tests
    "${sacctmgr[@]}" add user "$user" Account=$ACCOUNT
    "${sacctmgr[@]}" modify user "$user" set DefaultAccount=$ACCOUNT
    [ "$(timeout 10 sacctmgr -nP show user "$user" format=DefaultAccount)" = $ACCOUNT ]
}

refuse_second() {
    local name port
    for name in $DAEMONS node1 node2; do
        runs "$name" && fail "a cluster already runs in $DIR ($name is process $PID). Stop it, or set MINI_SLURM_DIR and MINI_SLURM_PORT."
    done
    for port in "$PORT" "$ACCOUNTING_PORT"; do
        listens "$CONTROLLER" "$port" && fail "port $port is taken by another program. Set MINI_SLURM_PORT to a free range of twenty."
    done
    ! listens 127.0.0.1 "$DATABASE_PORT" || fail "port $DATABASE_PORT is taken by another program. Set MINI_SLURM_PORT."
    [ ${#SOCKET} -lt 100 ] || fail "$DIR is too long for a socket's path. Set MINI_SLURM_DIR to a shorter one."
}

start() {
    local n began=$SECONDS
    need_root
    need_packages
    refuse_second
    configure
    trap '[ $? = 0 ] || stop >/dev/null' EXIT
    start_munge
    start_database
    spawn slurmdbd slurmdbd -D
    within 30 listens "$CONTROLLER" "$ACCOUNTING_PORT" || fail_with_log slurmdbd "slurmdbd does not listen."
    spawn slurmctld slurmctld -D
    for ((n = 1; n <= NODES; n++)); do start_node "$n"; done
    within 60 settled
    nodes_up || fail_with_log slurmctld "the nodes are not up: $(timeout 5 sinfo -h -N -o '%n %T' 2>&1 | tr '\n' ' ')"
    add_user >>"$DIR/log/sacctmgr.log" 2>&1 || fail_with_log sacctmgr "no account could be made."
    say "up in $((SECONDS - began)) s in $DIR; now: eval \"\$($0 env)\""
}

stop() {
    local n name left=()
    need_root
    runs slurmctld && timeout 5 scancel --user="$(id -un)" 2>/dev/null
    for ((n = 1; n <= NODES; n++)); do end_node "$n"; done
    for name in slurmctld slurmdbd mariadbd munged; do end "$name"; done
    for name in $DAEMONS node1 node2; do runs "$name" && left+=("$name is process $PID"); done
    [ "${#left[@]}" = 0 ] || fail "still running: ${left[*]}"
    say "stopped"
}

status() {
    local name down=0
    for name in $DAEMONS node1 node2; do
        if runs "$name"; then say "$name runs (process $PID)"; else say "$name is down" && down=1; fi
    done
    [ $down = 0 ] && timeout 10 sinfo -N -o '%N %P %T %c %m %G'
    return $down
}

node_number() { [[ "${1:-}" =~ ^[1-$NODES]$ ]] || fail "node '${1:-}': give a number from 1 to $NODES."; }

case "${1:-}" in
install | start | stop | status) "$1" ;;
kill-node) need_root && node_number "${2:-}" && end_node "$2" ;;
start-node)
    need_root && node_number "${2:-}"
    runs slurmctld || fail "no cluster runs in $DIR. Run: tools/mini_slurm.sh start"
    start_node "$2"
    ;;
env) echo "export SLURM_CONF='$SLURM_CONF'" ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
