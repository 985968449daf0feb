#!/usr/bin/env bash
# Submits training to Slurm, on one or several nodes with GPUs:
# gpu/slurm.sh [--dry-run] --config configs/NAME.py [...]
#
# The arguments are those of p2o_jax.main. The checkout and its .venv must be on a file system that
# all nodes share.
# Settings: P2O_NAME, P2O_NODES, P2O_GPUS (per node), P2O_TIME; optional P2O_PARTITION, P2O_ACCOUNT
# (docs/gpu.md).

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/../tpu/lib.sh"
read_args "$@"
check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "a name for job and run"
check P2O_NODES '[1-9][0-9]*' "a number of nodes"
check P2O_GPUS '[1-9][0-9]*' "the number of GPUs of each node"
check P2O_TIME '([0-9]+-)?[0-9]{1,3}:[0-9]{2}:[0-9]{2}' "the longest time of one start, [DAYS-]HH:MM:SS; the job queues itself again"
check_train_args --workdir
check_program sbatch "this is for machines that run Slurm"
settle

options=()
[[ -z ${P2O_PARTITION-} ]] || options+=(--partition="$P2O_PARTITION")
[[ -z ${P2O_ACCOUNT-} ]] || options+=(--account="$P2O_ACCOUNT")
run mkdir -p "$root/runs/$P2O_NAME/logs" # Slurm makes no folders
run sbatch --job-name="$P2O_NAME" --chdir="$root" --nodes="$P2O_NODES" --ntasks-per-node=1 --gpus-per-node="$P2O_GPUS" --exclusive \
  --time="$P2O_TIME" --signal=TERM@120 --requeue --open-mode=append --output="runs/$P2O_NAME/logs/%j.log" "${options[@]}" \
  gpu/job.sh "$P2O_NAME" "${args[@]}"
