#!/bin/sh
# start.sh FOLDER PORT: a cluster of Slurm's on this machine, of one node with two CPUs, until it is killed.
#
# All that it writes is in the folder: slurm.conf, the key and the socket of munge, state, logs, and the numbers of its processes in
# `pids`. Partition `high` preempts partition `low`. Ports PORT and PORT + 1 of the loopback.
set -eu
folder=$1
port=$2
host=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool"

dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 2>/dev/null
chmod 400 "$folder/munge.key"
munged --foreground --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" >"$folder/munged.log" 2>&1 &
echo $! >>"$folder/pids"

# Newer releases can do without control groups; older ones know no such word, and only want to be told not to mount any.
case $(slurmd -V) in
*" 1"* | *" 20."* | *" 21."* | *" 22."*) printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' ;;
*) echo CgroupPlugin=disabled ;;
esac >"$folder/cgroup.conf"

# cred_expire: a job that is put back waits for as long. KillWait: from SIGTERM to SIGKILL.
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MessageTimeout=5
SlurmdTimeout=10
KillWait=5
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"

tries=0
while [ ! -S "$folder/munge.socket" ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || exit 1
    sleep 0.1
done
slurmctld -D -L "$folder/slurmctld.log" >/dev/null 2>&1 &
echo $! >>"$folder/pids"
slurmd -D -N "$host" -L "$folder/slurmd.log" >/dev/null 2>&1 &
echo $! >>"$folder/pids"
echo $! >"$folder/node"
wait
