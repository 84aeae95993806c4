# shellcheck shell=bash
# What differs from cluster to cluster, and stands nowhere else. Every job sources it first, on its first node and,
# through node.sh, on every node.
#
# module load python/3.11 cuda/12.8
# source "$HOME/gptscale/.venv/bin/activate"
# export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5   # Gloo takes the same interface, or that of GLOO_SOCKET_IFNAME
# export HF_HOME=/scratch/$USER/huggingface
# export WANDB_MODE=offline      # for compute nodes without a way out, whatever wandb.mode says; `wandb sync` afterwards
#
# Options that a site always wants are sbatch's own variables, set in the shell that submits:
# SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS.

PYTHON=${PYTHON:-python}
