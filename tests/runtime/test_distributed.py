"""What the environment says of other processes."""

import os

import pytest
from jax._src.clusters import cloud_tpu_cluster

from p2o_jax.config import ConfigError
from p2o_jax.runtime import distributed

NAMES = (
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "MEGASCALE_NUM_SLICES",
    "JAX_COORDINATOR_ADDRESS",
    "TPU_WORKER_HOSTNAMES",
)


@pytest.mark.parametrize(
    ("detected", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        (
            {
                "TPU_WORKER_HOSTNAMES": (
                    "WARNING: could not determine TPU worker hostnames or IP addresses, please"
                    " set it"
                )
            },
            False,
        ),
    ],
    ids=str,
)
def test_whether_there_are_other_processes(detected, expected, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in detected.items():
        monkeypatch.setenv(name, value)
    assert distributed.in_a_group() is expected


@pytest.mark.parametrize("workers", [1, 4])
def test_hosts_of_a_tpu_pod_know_each_other_by_the_metadata_server(workers, monkeypatch):
    """As on a Cloud TPU VM, where no environment variable names the other hosts."""
    metadata = {
        "agent-worker-number": "2",
        "worker-network-endpoints": ",".join(f"a:b:10.0.0.{i}" for i in range(1, workers + 1)),
    }
    for name in (*NAMES, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(
        cloud_tpu_cluster,
        "get_metadata",
        lambda key: (metadata.get(key, ""), 200 if key in metadata else 404),
    )
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", lambda key: None)
    assert distributed.in_a_group() is (workers > 1)
    if workers > 1:
        assert distributed.place_in_group(1.0) == (
            f"10.0.0.1:{cloud_tpu_cluster.coordinator_port}",
            4,
            2,
        )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {
                "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
                "JAX_NUM_PROCESSES": "4",
                "JAX_PROCESS_ID": "3",
            },
            ("10.0.0.1:1234", 4, 3),
        ),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.7:1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            },
            ("10.0.0.7:", 2, 1),
        ),
    ],
    ids=["JAX_*", "Open MPI"],
)
def test_where_this_process_stands(variables, expected, monkeypatch):
    for name in (*NAMES, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    address, count, index = distributed.place_in_group(1.0)
    assert address.startswith(expected[0]) and (count, index) == expected[1:]


def test_missing_variables_are_named(monkeypatch):
    for name in (*NAMES, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is not set"):
        distributed.place_in_group(1.0)


@pytest.mark.parametrize(
    ("num_devices", "processes", "cores", "threads"),
    [(1, 1, 2, None), (1, 2, 2, "4"), (2, 1, 2, "8"), (8, 1, 2, "32"), (2, 1, 64, "64")],
)
def test_threads_of_a_split_cpu(num_devices, processes, cores, threads, monkeypatch):
    """More than can wait in a collective, a core each at least; of one device alone, what XLA
    takes by itself.
    """
    for name in (*NAMES, "NPROC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", str(processes))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(distributed.jax.config, "update", lambda name, value: None)
    distributed.split_cpu(num_devices)
    assert os.environ.get("NPROC") == threads
