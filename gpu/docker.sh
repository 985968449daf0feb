#!/usr/bin/env bash
# Trains in a container on the GPUs of this machine:
# gpu/docker.sh [--dry-run] --config configs/NAME.py [...]
#
# The arguments are those of p2o_jax.main. The container only sees the checkout's inputs/ (model,
# questions) and runs/.
# Settings: P2O_NAME (docs/gpu.md). `docker stop NAME` makes it save and exit.

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/../tpu/lib.sh"
read_args "$@"
check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "a name for container and run"
check_train_args --workdir
check_program docker "https://docs.docker.com/engine/install, and the NVIDIA container toolkit"
settle

run docker build --file "$root/gpu/Dockerfile" --tag p2o_jax:gpu "$root"
run mkdir -p "$root/runs" "$root/inputs"
run docker run --rm --name "$P2O_NAME" --gpus all --shm-size=8g --stop-timeout 60 --user "$(id -u):$(id -g)" --env HOME=/tmp \
  --volume "$root/runs:/p2o_jax/runs" --volume "$root/inputs:/p2o_jax/inputs:ro" p2o_jax:gpu \
  python -m p2o_jax.main "${args[@]}" --workdir="runs/$P2O_NAME"
