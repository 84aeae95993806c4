#!/bin/bash
# Train on all GPUs of this machine, or in one process where it has none:
#
#   launch/local.sh configs/gpt2-124m.yaml [section.key=value ...]
#
# ENGINE names a file in launch/accelerate/ (ddp), RANKS another number of ranks, PYTHON another interpreter.
# SIGTERM, as Ctrl-C or a terminal that is closed, ends the run with a checkpoint; the same command goes on from it.
# Under nohup it outlives its terminal.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-python}
ranks=${RANKS:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
say() { echo "local.sh: $*" >&2; }
[[ $ranks =~ ^[1-9][0-9]*$ ]] || { say "RANKS=$ranks is no number of ranks, from 1 on"; exit 2; }
[ -e "$here/accelerate/${ENGINE:-ddp}.yaml" ] || {
    say "ENGINE=$ENGINE is no file in $here/accelerate; there are $(cd "$here/accelerate" && echo *.yaml)"
    exit 2
}
if [ "$ranks" -eq 1 ] && [ -z "${ENGINE:-}" ]; then
    exec "$python" -m gptscale train "$@"
fi
trap '' USR1  # which asks ranks to stop; the launcher, which hands on SIGTERM only, would die of it and leave them
# nohup has SIGHUP ignored, which the launcher, unless told otherwise, would listen to again and end the ranks.
[ -z "$(trap -p HUP)" ] || export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGQUIT}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # s; after 30 the launcher would kill a save
exec "$python" -m accelerate.commands.launch --config_file "$here/accelerate/${ENGINE:-ddp}.yaml" \
    --num_processes "$ranks" -m gptscale train "$@"
