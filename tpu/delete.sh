#!/usr/bin/env bash
# Makes a run save its state, and deletes its slice: tpu/delete.sh [--dry-run]
#
# The bucket keeps the run; tpu/keep.sh continues it. Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE
# (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_no_args
settle

on_workers "p2o_jax/tpu/worker.sh stop" || say "the workers could not be asked to save"
delete
