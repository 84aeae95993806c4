#!/bin/bash
# Train on all GPUs of this machine, or in one process where it has none:
#
#   launch/local.sh configs/gpt2-124m.yaml [section.key=value ...]
#
# ENGINE names a file in launch/accelerate/ (ddp), RANKS another number of ranks, PYTHON another interpreter.
# SIGTERM, as Ctrl-C, ends the run with a checkpoint; the same command goes on from it.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-python}
ranks=${RANKS:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if [ "$ranks" -eq 1 ] && [ -z "${ENGINE:-}" ]; then
    exec "$python" -m gptscale train "$@"
fi
trap '' USR1  # which asks ranks to stop; the launcher, which hands on SIGTERM only, would die of it and leave them
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # s; after 30 the launcher would kill a save
exec "$python" -m accelerate.commands.launch --config_file "$here/accelerate/${ENGINE:-ddp}.yaml" \
    --num_processes "$ranks" -m gptscale train "$@"
