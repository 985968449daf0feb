#!/usr/bin/env bash
# Requests a TPU slice as a queued resource, and waits until it is ready: tpu/create.sh [--dry-run]
#
# Settings: P2O_NAME, P2O_PROJECT, P2O_ZONE, P2O_TYPE, P2O_SPOT; optional P2O_SLICES,
# P2O_SERVICE_ACCOUNT (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_slice
check_no_args
settle

create
[[ -z $dry_run ]] || { state; exit 0; }
while now=$(state); [[ $now != ACTIVE ]]; do
  case $now in
    FAILED | SUSPENDED | "")
      queued describe "$P2O_NAME" >&2 || true
      echo "error: $P2O_NAME is ${now:-gone}; see above, then tpu/delete.sh" >&2
      exit 1
      ;;
  esac
  say "$now"
  sleep "${P2O_POLL_S:-30}"
done
say "$P2O_NAME is there, and costs money until tpu/delete.sh"
