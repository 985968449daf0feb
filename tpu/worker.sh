#!/usr/bin/env bash
# Runs on a host of a slice:
# tpu/worker.sh install | start NAME BUCKET ARGS... | run NAME BUCKET ARGS... | status NAME | stop
#
# `run` copies BUCKET/inputs and the run's records from BUCKET/NAME/run, trains with ARGS (those of
# p2o_jax.main), and copies log and records back every minute and at the end. `start` does so in the
# background. The program itself stores its state in BUCKET/NAME/checkpoints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${P2O_PYTHON:-.venv/bin/python}
SAVE_S=${P2O_SAVE_S:-60}

main() {
  local what=${1-}
  case $what in
    install | start | run | status | stop) shift && "$what" "$@" ;;
    *) sed -n '2p' "$0" >&2 && exit 2 ;;
  esac
}

# Python from uv, because the images of TPU VMs have an older one.
install() {
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gs]'
}

start() { nohup tpu/worker.sh run "$@" < /dev/null > /dev/null 2>&1 & }

run() {
  name=$1 bucket=$2 workdir=runs/$1 is_first="" asked=""
  shift 2
  mkdir -p .run logs "$workdir"
  exec 9> .run/lock
  flock --nonblock 9 || { echo "a run is going on here" >&2; exit 1; }
  echo $$ > .run/pid
  rm -f .run/exit
  place=$(place)
  [[ $place != 0-0 ]] || is_first=yes
  log=logs/$(date +%Y%m%dT%H%M%S)-$place.log
  exec > >(tee -a "$log" 9>&-) 2>&1
  join
  bring "$bucket/inputs" inputs
  bring "$bucket/$name/run" "$workdir"

  "$PYTHON" -m p2o_jax.main "$@" --workdir="$workdir" --config.checkpoint.path="$bucket/$name/checkpoints" \
    --config.train.compile_cache="$bucket/compile_cache" &
  local trainer=$! code=0
  trap 'asked=yes; kill -TERM "$trainer" 2> /dev/null' TERM
  (while sleep "$SAVE_S"; do save || echo "not saved; the next time in $SAVE_S s"; done) 9>&- &
  local saver=$!
  while kill -0 "$trainer" 2> /dev/null; do # a signal ends `wait` early
    code=0
    wait "$trainer" || code=$?
  done
  kill "$saver" 2> /dev/null || true
  [[ -z $asked || $code != 0 ]] || code=143 # it was asked to exit, and has not ended
  echo "ended with exit code $code"
  save || echo "not saved"
  echo "$code" > .run/exit
  exit "$code"
}

# bring FROM TO: copies a folder of the bucket, if it exists.
bring() {
  mkdir -p "$2"
  ! gcloud storage ls "$1/" > /dev/null 2>&1 || gcloud storage rsync --recursive "$1" "$2"
}

# Copies the log, and on the host of process 0 the records. They are copied locally first, because
# they are still being written.
save() {
  gcloud storage cp --quiet "$log" "$bucket/$name/logs/" || return
  [[ -n $is_first ]] || return 0
  mkdir -p .run/records && cp -a "$workdir/." .run/records && gcloud storage rsync --quiet --recursive .run/records "$bucket/$name/run"
}

# SLICE-WORKER of this host, from GKE's environment or the metadata server of a TPU VM.
place() {
  local worker=${TPU_WORKER_ID-} slice=${MEGASCALE_SLICE_ID-}
  if [[ -z $worker ]]; then
    worker=$(attribute agent-worker-number)
    slice=$(tpu_env MEGASCALE_SLICE_ID)
  fi
  echo "${slice:-0}-${worker:-0}"
}

# On TPU VMs, names process 0 for p2o_jax if there are several hosts. JAX detects the rest.
join() {
  local hosts first
  [[ -z ${TPU_WORKER_ID-}${JAX_COORDINATOR_ADDRESS-} ]] || return 0
  hosts=$(attribute worker-network-endpoints) # NAME:ID:IP or IP for each host of the slice
  first=$(tpu_env MEGASCALE_COORDINATOR_ADDRESS)
  [[ -n $first || $hosts == *,* ]] || return 0
  [[ -n $first ]] || first=$(cut -d, -f1 <<< "$hosts" | sed 's/.*://')
  export JAX_COORDINATOR_ADDRESS=${first%%:*}:8476
}

attribute() {
  curl --silent --fail --max-time 5 -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}

tpu_env() { attribute tpu-env | sed -n "s/^$1: *'\(.*\)'.*/\1/p"; }

# none, running, finished (there is a result), or "exit CODE".
status() {
  mkdir -p .run
  if ! flock --nonblock .run/lock true; then
    echo running
  elif [[ ! -e .run/exit ]]; then
    echo none
  elif [[ $(< .run/exit) == 0 && -e runs/$1/result.json ]]; then
    echo finished
  else
    echo "exit $(< .run/exit)"
  fi
}

# Makes the run save its state and exit, and waits for it.
stop() {
  [[ -e .run/lock ]] && ! flock --nonblock .run/lock true || return 0
  kill -TERM "$(< .run/pid)"
  flock --wait 120 .run/lock true
}

main "$@"
