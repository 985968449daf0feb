"""Programs that stand in for Google's, Slurm's and the machines behind them, in bash: what they are
asked is written to $CLOUD/asked.

`gcloud` has one machine of two workers, whose home folders are $CLOUD/worker0 and 1, and buckets in
$CLOUD/buckets. The machine is ACTIVE at the third look after it was asked for. `ssh` runs commands
there; `delete` takes the machine away with its disks.
"""

import stat
from pathlib import Path

GCLOUD = r"""
echo "gcloud $*" | tr '\n' ' ' >> "$CLOUD/asked"; echo >> "$CLOUD/asked"
bucket() { echo "$CLOUD/buckets/${1#gs://}"; }
local_path() { [[ $1 == gs://* ]] && bucket "$1" || echo "$1"; }
# Atomic, so that the file is never seen empty.
become() { echo "$1" > "$CLOUD/next.$$" && mv "$CLOUD/next.$$" "$CLOUD/state"; }
state=$(cat "$CLOUD/state" 2> /dev/null)
case "$*" in
  "storage ls"*) [[ -e $(bucket "$3") ]] ;;
  "storage rsync"*)
    from=$(local_path "${@: -2:1}") to=$(local_path "${@: -1}")
    mkdir -p "$to" && cp -a "$from/." "$to"
    ;;
  "storage cp"*)
    from=$(local_path "${@: -2:1}") to=$(local_path "${@: -1}")
    [[ $to != */ ]] || to=$to${from##*/}
    if [[ $to == - ]]; then cat "$from"; else mkdir -p "${to%/*}" && cp "$from" "$to"; fi
    ;;
  *"queued-resources create"*) [[ ! -e $CLOUD/no_quota ]] && become ACCEPTED || become FAILED ;;
  *"queued-resources list"*)
    [[ ! -e $CLOUD/offline ]] || { rm "$CLOUD/offline"; exit 1; }
    case $state in
      ACCEPTED) state=PROVISIONING && become "$state" ;;
      PROVISIONING)
        state=ACTIVE && mkdir -p "$CLOUD/worker0" "$CLOUD/worker1" && become "$state"
        ;;
    esac
    [[ -z $state ]] || echo "$state"
    ;;
  *"queued-resources describe"*) echo "what it says" ;;
  *"queued-resources delete"*)
    # Programs that still run there may write meanwhile.
    until rm -rf "$CLOUD/state" "$CLOUD/worker0" "$CLOUD/worker1"; do sleep 0.02; done
    ;;
  *"queued-resources ssh"*)
    [[ $state == ACTIVE && ! -e $CLOUD/unreachable ]] || { rm -f "$CLOUD/unreachable"; exit 255; }
    for arg; do [[ $arg != --command=* ]] || command=${arg#--command=}; done
    for i in 0 1; do (cd "$CLOUD/worker$i" && WORKER=$i bash -c "$command") || exit; done
    ;;
esac
"""
CURL = r"""
case "${@: -1}" in
  */agent-worker-number) echo "$WORKER" ;;
  */worker-network-endpoints) echo "unknown:unknown:10.0.0.7,unknown:unknown:10.0.0.8" ;;
  */tpu-env) echo "ACCELERATOR_TYPE: 'v5p-16'" ;;
  *) exit 22 ;;
esac
"""
PYTHON3 = r"""
[[ "$*" != *"uv venv"* ]] || { mkdir -p .venv/bin && cp "$CLOUD/trainer" .venv/bin/python; }
"""
TRAINER_START = r"""
echo "worker $WORKER $JAX_COORDINATOR_ADDRESS: $*" >> "$CLOUD/trained"
for arg; do [[ $arg != --workdir=* ]] || workdir=${arg#--workdir=}; done
"""
# The first start is preempted when its records are in the bucket. The second one reads them and
# finishes.
PREEMPTED_ONCE = r"""
saved=$CLOUD/buckets/my-bucket/p2o-1/run/metrics.jsonl
if [[ -e $workdir/metrics.jsonl ]]; then
  if [[ $WORKER == 0 ]]; then
    echo '{"step": 2}' >> "$workdir/metrics.jsonl"
    echo {} > "$workdir/result.json"
  fi
else
  [[ $WORKER != 0 ]] || echo '{"step": 1}' >> "$workdir/metrics.jsonl"
  until [[ -e $saved ]]; do sleep 0.02; done
  [[ $WORKER != 0 ]] || { echo SUSPENDED > "$CLOUD/next" && mv "$CLOUD/next" "$CLOUD/state"; }
  sleep 0.2
fi
"""
SBATCH = 'printf "%s\\n" "$@" > "$CLOUD/asked"\n'
SRUN = r"""
echo "srun $* with devices $JAX_LOCAL_DEVICE_IDS" >> "$CLOUD/asked"
[[ ! -e $CLOUD/code ]] || exit "$(< "$CLOUD/code")"
[[ -e $CLOUD/unfinished ]] || echo {} > runs/p2o-1/result.json
"""
RECORD = r"""
echo "$(basename "$0") $*" >> "$CLOUD/asked"
[[ ! -p /dev/stdin ]] || cat > "$CLOUD/stdin"
"""


def install(folder: Path, trainer: str) -> None:
    """Puts the programs into folder/bin; `trainer` continues what trains on the workers."""
    programs = {"gcloud": GCLOUD, "curl": CURL, "python3": PYTHON3, "sbatch": SBATCH, "srun": SRUN}
    programs |= dict.fromkeys(("kubectl", "xpk", "sky", "docker", "scontrol"), RECORD)
    paths = {folder / "bin" / name: text for name, text in programs.items()} | {
        folder / "trainer": TRAINER_START + trainer
    }
    (folder / "bin").mkdir(parents=True)
    for path, text in paths.items():
        path.write_text("#!/usr/bin/env bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
