#!/usr/bin/env bash
# Trains on a GKE cluster created by xpk: tpu/xpk.sh [--dry-run] --config configs/NAME.py [...]
#
# The arguments are those of p2o_jax.main. Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE, P2O_TYPE,
# P2O_SPOT, P2O_BUCKET, P2O_IMAGE, P2O_CLUSTER; optional P2O_SLICES (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_slice
check_bucket
check_image
check P2O_CLUSTER '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "the name of the cluster"
check_train_args "$SET_BY_WORKER"
check_program xpk "pip install xpk, in an environment of its own"
settle

run xpk workload create --workload="$P2O_NAME" --cluster="$P2O_CLUSTER" --project="$P2O_PROJECT" --zone="$P2O_ZONE" \
  --tpu-type="$P2O_TYPE" --num-slices="$slices" --docker-image="$P2O_IMAGE" --max-restarts=100 --restart-on-exit-codes=1,75 \
  --command="/p2o_jax/tpu/worker.sh run $P2O_NAME $P2O_BUCKET $(quoted "${args[@]}")"
