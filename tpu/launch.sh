#!/usr/bin/env bash
# Starts training in the background on all workers of a slice:
# tpu/launch.sh [--dry-run] --config configs/NAME.py [...]
#
# The arguments are those of p2o_jax.main. Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE, P2O_BUCKET
# (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_bucket
check_train_args "$SET_BY_WORKER"
settle

launch "${args[@]}"
