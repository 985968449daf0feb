#!/usr/bin/env bash
# The job that gpu/slurm.sh submits: gpu/job.sh NAME ARGS...
#
# Trains with one process per node, and requeues itself until there is a result.
# Two minutes before its time limit, Slurm sends SIGTERM to the processes, which save and exit. JAX
# detects the other processes from Slurm's environment. Failures are retried five times, except
# rejected settings (exit code 2).
set -euo pipefail
name=$1
shift

JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1))) # else JAX gives a process one GPU
export JAX_LOCAL_DEVICE_IDS
code=0
srun --output="runs/$name/logs/%j-%t.log" --open-mode=append --kill-on-bad-exit=1 \
  .venv/bin/python -m p2o_jax.main "$@" --workdir="runs/$name" || code=$?

if [[ -e runs/$name/result.json && $code == 0 ]]; then
  echo "$name has ended"
elif ((code == 0 || (code != 2 && ${SLURM_RESTART_COUNT:-0} < 5))); then
  echo "exit code $code without a result: queued again"
  scontrol requeue "$SLURM_JOB_ID"
else
  exit "$code"
fi
