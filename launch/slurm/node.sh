#!/bin/bash
# One on each node, started by srun: the launcher of the node's ranks.
# A notice (USR1, TERM) goes to the ranks, not to the launcher, which would die of the one and on the other end the
# ranks before they have saved. The launcher ends when they have.

trapped='' noticed='' launcher='' code=1
# A launcher that has started no rank yet may go at once.
trap 'trapped=1 noticed=1; [ -z "$launcher" ] || pkill -USR1 -P "$launcher" || kill "$launcher"' USR1 TERM

here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/slurm/site.sh
source "$here/site.sh" || exit 2
set -uo pipefail  # not before, for what a site sources

# Every rank and the store on the first node have a connection to each other rank; 1,024 files are the usual limit.
ulimit -Sn "$(ulimit -Hn)"

per_node=${SLURM_GPUS_ON_NODE:-1}
threads=$((${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} / per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

[ -z "$trapped" ] || exit 0  # there is nothing to save yet
"$PYTHON" -m accelerate.commands.launch --config_file "$here/../accelerate/${ENGINE:-ddp}.yaml" \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * per_node)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
    -m gptscale train "$@" &
launcher=$!
[ -z "$trapped" ] || kill "$launcher"

while :; do
    trapped=''
    wait "$launcher"
    found=$?
    [ "$found" -eq 127 ] || code=$found
    [ -n "$trapped" ] || break
done
[ -z "$noticed" ] || exit 0  # asked to leave; train.sbatch sees by the checkpoints how far that went
exit "$code"
