#!/usr/bin/env bash
# Trains on GKE, in the current cluster of kubectl:
# tpu/gke.sh [--dry-run] --config configs/NAME.py [...]
#
# JobSet restarts the run after preemptions and failures. The arguments are those of p2o_jax.main.
# Settings: P2O_NAME, P2O_TYPE, P2O_SPOT, P2O_BUCKET, P2O_IMAGE; optional P2O_SLICES,
# P2O_K8S_ACCOUNT (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "a name for the run"
check_slice
check_bucket
check_image
[[ -z ${P2O_K8S_ACCOUNT-} ]] || check P2O_K8S_ACCOUNT '[a-z0-9]([a-z0-9.-]*[a-z0-9])?' "a Kubernetes service account"
check_train_args "$SET_BY_WORKER"
check_program kubectl "https://kubernetes.io/docs/tasks/tools"
for arg in "${args[@]}"; do
  [[ $arg != *[[:cntrl:]]* ]] || problem "$(quoted "$arg"): control characters cannot go into a manifest"
done
settle

# The words as a JSON list.
json_list() {
  local word words=()
  for word; do
    word=${word//\\/\\\\}
    words+=("\"${word//\"/\\\"}\"")
  done
  local IFS=,
  echo "[${words[*]}]"
}

manifest() {
  local text name
  declare -A values=(
    [NAME]=$P2O_NAME [IMAGE]=$P2O_IMAGE [SLICES]=$slices [HOSTS]=$hosts [CHIPS_PER_HOST]=$on_host [ACCELERATOR]=$gke [TOPOLOGY]=$topology
    [SERVICE_ACCOUNT]=${P2O_K8S_ACCOUNT:-default}
  )
  text=$(if [[ $P2O_SPOT == yes ]]; then cat "$root/tpu/jobset.yaml"; else grep -v '# spot only$' "$root/tpu/jobset.yaml"; fi)
  for name in "${!values[@]}"; do text=${text//"@$name@"/"${values[$name]}"}; done
  echo "${text//"@COMMAND@"/"$(json_list /p2o_jax/tpu/worker.sh run "$P2O_NAME" "$P2O_BUCKET" "${args[@]}")"}"
}

text=$(manifest)
[[ -z $dry_run ]] || echo "$text"
run kubectl apply --filename=- <<< "$text"
