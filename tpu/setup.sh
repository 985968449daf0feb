#!/usr/bin/env bash
# Copies this checkout to all workers of a slice and installs it there: tpu/setup.sh [--dry-run]
#
# Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE, P2O_BUCKET (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_bucket
check_no_args
settle

upload
install
