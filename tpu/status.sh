#!/usr/bin/env bash
# Shows the state of a slice and the last lines of its workers' logs: tpu/status.sh [--dry-run]
#
# Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_no_args
settle

state
status
on_workers "tail -n 20 p2o_jax/logs/*.log"
