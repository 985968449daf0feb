#!/usr/bin/env bash
# Trains to the end, even if the slice is preempted:
# tpu/keep.sh [--dry-run] --config configs/NAME.py [...]
#
# Checks the slice repeatedly, and does what is missing: creates it, sets it up, starts the run,
# restarts it after a failure, replaces a preempted slice. When the run has finished, fetches it and
# deletes the slice. The script can be interrupted and restarted.
# The arguments are those of p2o_jax.main. Settings: all of tpu/README.md.

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check_cloud
check_slice
check_bucket
check_train_args "$SET_BY_WORKER"
settle

MAX_IN_A_ROW=5 # failures of one kind, with nothing that went well between them
GOOD_LOOKS=60 # looks at which a run was going on, after which its earlier failures do not count
failed_requests=0 failed_looks=0 failed_runs=0 good_looks=0

give_up() {
  echo "error: $*" >&2
  [[ -z $(state) ]] || echo "$P2O_NAME is still there and costs money: tpu/delete.sh" >&2
  exit 1
}

# The next step for an existing slice.
look() {
  local said
  if ! said=$(status); then
    say "its workers cannot be reached (${failed_looks} times before)"
    ((++failed_looks < MAX_IN_A_ROW)) || { failed_looks=0; say "replacing it"; delete; }
    return
  fi
  failed_looks=0
  case $said$'\n' in
    *running*) ((++good_looks < GOOD_LOOKS)) || failed_runs=0 ;;
    *finished*) "$root/tpu/fetch.sh" && delete && say "$P2O_NAME has ended: runs/$P2O_NAME" && exit 0 ;;
    *"exit 2"$'\n'*) give_up "the program does not accept its settings, or cannot write: tpu/status.sh shows its log" ;;
    *none*) say "setting up" && install && launch "${args[@]}" ;;
    *)
      ((++failed_runs < MAX_IN_A_ROW)) || give_up "the run has failed $failed_runs times in a row: tpu/status.sh shows its log"
      good_looks=0
      say "starting again after: $(tr '\n' ' ' <<< "$said")" && launch "${args[@]}"
      ;;
  esac
}

upload
if [[ -n $dry_run ]]; then
  state && create && status && install && launch "${args[@]}" && "$root/tpu/fetch.sh" --dry-run && delete
  exit 0
fi
while :; do
  if ! now=$(state); then
    say "Google Cloud cannot be asked"
  else
    case $now in
      "") create || say "the request was not taken" ;;
      ACTIVE)
        failed_requests=0
        look || say "that did not work; looking again"
        ;;
      FAILED | SUSPENDING | SUSPENDED)
        say "$now"
        [[ $now != FAILED ]] || ((++failed_requests < MAX_IN_A_ROW)) || give_up "$failed_requests requests in a row have failed"
        queued describe "$P2O_NAME" >&2 || true
        delete || say "it cannot be deleted yet"
        ;;
      *) say "$now" ;;
    esac
  fi
  sleep "${P2O_POLL_S:-30}"
done
