#!/usr/bin/env bash
# Copies a run's records and its workers' logs from the bucket to runs/NAME:
# tpu/fetch.sh [--dry-run] [--checkpoints]
#
# During training they are at most a minute old. Settings: P2O_NAME, P2O_BUCKET (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "the run's name"
check_bucket
check_program gcloud "https://cloud.google.com/sdk/docs/install"
parts=(run: logs:/logs)
case ${args[*]} in
  "") ;;
  --checkpoints) parts+=(checkpoints:/checkpoints) ;;
  *) check_no_args ;;
esac
settle

for part in "${parts[@]}"; do
  to=$root/runs/$P2O_NAME${part#*:}
  run mkdir -p "$to"
  run gcloud storage rsync --recursive "$P2O_BUCKET/$P2O_NAME/${part%%:*}" "$to"
done
