# TPU VMs of Google Cloud as queued resources: settings, kinds of slices, and shared commands.
# shellcheck shell=bash disable=SC2034 # what the scripts use
# shellcheck source=tpu/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

check_cloud() {
  check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "a name for machine and run: up to 40 small letters, digits and -, e.g. p2o-1"
  check P2O_PROJECT '[a-z][a-z0-9-]{4,28}[a-z0-9]' "the id of a Google Cloud project"
  check P2O_ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone that has such TPUs, e.g. us-east5-a"
  check_program gcloud "https://cloud.google.com/sdk/docs/install"
}

check_bucket() { check P2O_BUCKET 'gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' "a bucket in the TPUs' region, gs://NAME"; }

SET_BY_WORKER='--workdir|--config\.checkpoint\.path|--config\.train\.compile_cache'

# P2O_TYPE, and what it determines: chips and hosts of a slice, its topology (in the notation of
# p2o_jax.plan and GKE), its image, and its name on GKE.
# The number counts cores in v4-N and v5p-N (two per chip), and chips in v5litepod-N and v6e-N.
check_type() {
  local kind=${P2O_TYPE%-*} number=$((10#${P2O_TYPE##*-})) shapes
  local flat="1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16"
  local cube="4:2x2x1 8:2x2x2 16:2x2x4 32:2x4x4 64:4x4x4 128:4x4x8 256:4x8x8 512:8x8x8 1024:8x8x16"
  chips=$number on_host=4
  case $kind in
    v4) shapes=$cube chips=$((number / 2)) image=tpu-ubuntu2204-base gke=tpu-v4-podslice plan=v4 ;;
    v5p) shapes=$cube chips=$((number / 2)) image=v2-alpha-tpuv5 gke=tpu-v5p-slice plan=v5p ;;
    v5litepod) shapes=$flat image=v2-alpha-tpuv5-lite gke=tpu-v5-lite-podslice plan=v5e ;;
    v6e) shapes=$flat image=v2-alpha-tpuv6e gke=tpu-v6e-slice plan=v6e ;;
  esac
  [[ $shapes != "$cube" ]] || ((number % 2 == 0)) || chips=0
  topology=$(tr ' ' '\n' <<< "$shapes" | sed -n "s/^$chips://p")
  [[ $shapes == "$flat" ]] && ((chips <= 8)) && on_host=$chips
  hosts=$((chips / on_host))
}

check_slice() {
  check P2O_TYPE '(v4|v5p|v5litepod|v6e)-[0-9]+' "an accelerator type such as v5litepod-8, v6e-16 or v5p-64"
  check P2O_SPOT 'yes|no' "yes (cheaper, may be taken away at any time) or no"
  [[ -z ${P2O_SLICES-} ]] || check P2O_SLICES '[1-9][0-9]*' "a number of slices (default 1)"
  slices=${P2O_SLICES:-1}
  [[ ${P2O_TYPE-} =~ ^(v4|v5p|v5litepod|v6e)-[0-9]+$ ]] || return 0
  check_type
  [[ -n $topology ]] || problem "P2O_TYPE=$P2O_TYPE: there is no slice of that size"
}

queued() { run gcloud compute tpus queued-resources "$@" --project="$P2O_PROJECT" --zone="$P2O_ZONE" --quiet; }

# Google's state of the machine (ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...), or nothing.
state() { queued list --filter="name ~ /$P2O_NAME\$" --format="value(state.state)"; }

create() {
  local nodes=(--node-id="$P2O_NAME") options=()
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$P2O_NAME")
  [[ $P2O_SPOT == no ]] || options+=(--spot)
  [[ -z ${P2O_SERVICE_ACCOUNT-} ]] || options+=(--service-account="$P2O_SERVICE_ACCOUNT")
  say "asking for $slices x $P2O_TYPE ($plan:$topology): $chips chips on $hosts hosts each"
  queued create "$P2O_NAME" "${nodes[@]}" --accelerator-type="$P2O_TYPE" --runtime-version="$image" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${options[@]}" --async
}

delete() { queued delete "$P2O_NAME" --force; }

on_workers() { queued ssh "$P2O_NAME" --node=all --worker=all --command="$1"; }

# Copies this checkout (the files tracked by git) to the bucket.
upload() {
  local pack="cd \"\$1\" && mkdir -p build && git ls-files -z | tar --null --files-from=- -czf build/code.tar.gz"
  run bash -c "$pack" pack "$root"
  run gcloud storage cp "$root/build/code.tar.gz" "$P2O_BUCKET/$P2O_NAME/code.tar.gz"
}

# Copies the checkout from the bucket to all workers, and creates an environment there.
install() {
  on_workers "mkdir -p p2o_jax && gcloud storage cp $P2O_BUCKET/$P2O_NAME/code.tar.gz - | tar xz -C p2o_jax \
&& p2o_jax/tpu/worker.sh install"
}

launch() { on_workers "p2o_jax/tpu/worker.sh start $P2O_NAME $P2O_BUCKET $(quoted "$@")"; }

# A word for each worker: none, running, finished, or "exit CODE".
status() { on_workers "p2o_jax/tpu/worker.sh status $P2O_NAME || echo none"; }

check_image() { check P2O_IMAGE '[a-z0-9][a-z0-9./:_@-]+' "an image of tpu/Dockerfile, e.g. us-docker.pkg.dev/PROJECT/p2o/p2o_jax:1"; }
