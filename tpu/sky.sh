#!/usr/bin/env bash
# Trains as a managed job of SkyPilot: tpu/sky.sh [--dry-run] --config configs/NAME.py [...]
#
# The arguments are those of p2o_jax.main. Settings: P2O_NAME, P2O_ZONE, P2O_TYPE, P2O_SPOT,
# P2O_BUCKET (tpu/README.md).

# shellcheck source=tpu/cloud.sh
source "$(dirname "$0")/cloud.sh"
read_args "$@"
check P2O_NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "a name for the run"
check P2O_ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone that has such TPUs, e.g. us-east5-a"
check_slice
check_bucket
check_train_args "$SET_BY_WORKER"
check_program sky "pip install 'skypilot[gcp]', in an environment of its own"
settle

spot=--use-spot
[[ $P2O_SPOT == yes ]] || spot=--no-use-spot
run sky jobs launch "$root/tpu/sky.yaml" --workdir="$root" --name="$P2O_NAME" --infra="gcp/${P2O_ZONE%-*}/$P2O_ZONE" \
  --gpus="tpu-$P2O_TYPE:1" "$spot" --env="P2O_NAME=$P2O_NAME" --env="P2O_BUCKET=$P2O_BUCKET" --env="P2O_ARGS=$(quoted "${args[@]}")" --yes
