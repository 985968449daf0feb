"""Loading a Hugging Face checkpoint: `python -m benchmarks.load [--size tiny|0.6b|4b]`.

Writes a random bfloat16 checkpoint with Qwen3's shapes in two or more files to a temporary folder
(in DIR), loads it onto all devices, and removes it. Before loading, the files are dropped from the
page cache as far as the system allows.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks import memory, report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab": 4096,
        "width": 256,
        "layers": 4,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 32,
        "mlp": 768,
    },
    "0.6b": {
        "vocab": 151936,
        "width": 1024,
        "layers": 28,
        "heads": 16,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp": 3072,
    },
    "4b": {
        "vocab": 151936,
        "width": 2560,
        "layers": 36,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp": 9728,
    },
}
MAX_FILE_BYTES = 5e9
BLOCK_BYTES = 32 * 2**20  # random numbers from which all tensors are cut
TARGETS = {"not twice in memory": Target("peak_rss_over_params", "<=", 1.25)}
COMMAND_LINE = CommandLine(
    "benchmarks.load",
    __doc__,
    Flag("size", "Size of the checkpoint", "4b", choices=tuple(SIZES)),
    Flag("dtype", "Dtype of the weights", "bfloat16", choices=("bfloat16", "float32")),
    Flag("folder", "Folder to write the checkpoint to", tempfile.gettempdir(), metavar="DIR"),
    settings=False,
)


def _problems(flags: dict[str, Any]) -> Iterator[str]:
    if not Path(flags["folder"]).is_dir():
        yield f"--folder={flags['folder']}: no such directory"


def run(argv: Sequence[str]) -> None:
    """Writes, loads and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv, _problems)
    with tempfile.TemporaryDirectory(dir=flags["folder"], prefix="p2o-load-") as folder:
        figures = measure(flags["size"], flags["dtype"], Path(folder))
    report.finish("load", figures, TARGETS)


def measure(size: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Seconds, GB/s (of the files) and peak resident memory of loading a checkpoint."""
    import jax

    from p2o_jax.models import hf, hf_config, sharding
    from p2o_jax.models.spec import ModelSpec, num_params

    spec = ModelSpec(family="qwen3", qk_norm=True, tied=True, max_positions=32768, **SIZES[size])
    start = time.monotonic()
    hf_config.write_json(folder / "config.json", hf_config.write_config(spec, "bfloat16", {}))
    shapes = {t.name: t.shape for t in hf.tensors(spec)}
    file_bytes = write_files(folder, shapes)
    print(
        f"wrote {file_bytes / 1e9:.2f} GB in {time.monotonic() - start:.0f} s; loading",
        file=sys.stderr,
    )

    mesh = sharding.make_mesh((1, len(jax.devices()), 1))
    shardings = sharding.param_shardings(spec, mesh, sharding.LEARNER)
    before, start = memory.own_bytes(), time.monotonic()
    params = hf.load(folder, hf_config.read_spec(folder), shardings, dtype)
    jax.block_until_ready(params)
    seconds = time.monotonic() - start
    param_bytes, peak = sum(x.nbytes for x in jax.tree.leaves(params)), memory.own_peak_bytes()
    return {
        "size": size,
        "dtype": dtype,
        "parameters": num_params(spec),
        "param_gb": round(param_bytes / 1e9, 3),
        "files": len(list(folder.glob("*.safetensors"))),
        "seconds": round(seconds, 2),
        "gb_per_s": round(file_bytes / 1e9 / seconds, 3),
        "rss_before_gb": round(before / 1e9, 3),
        "peak_rss_gb": round(peak / 1e9, 3),
        "peak_rss_over_params": round(peak / param_bytes, 3),
    }


def write_files(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Writes random bfloat16 tensors as safetensors files with an index.

    Returns the number of bytes.
    """
    import ml_dtypes

    rng = np.random.default_rng(0)
    block = (
        (rng.standard_normal(BLOCK_BYTES // 2, np.float32) * 0.02)
        .astype(ml_dtypes.bfloat16)
        .view(np.uint8)
        .tobytes()
    )
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    count = max(2, int(-(-total // MAX_FILE_BYTES)))
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    written = 0
    for name, shape in shapes.items():
        groups[min(written * count // total, count - 1)][name] = shape
        written += 2 * int(np.prod(shape))
    files = {f"model-{i:05}-of-{count:05}.safetensors": group for i, group in enumerate(groups, 1)}
    for file, group in files.items():
        with open(folder / file, "wb") as out:
            _write_file(out, group, block, rng)
    weight_map = {name: file for file, group in files.items() for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum((folder / file).stat().st_size for file in files)


def _write_file(
    out: BinaryIO, group: dict[str, tuple[int, ...]], block: bytes, rng: np.random.Generator
) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in group.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for shape in group.values():
        left = 2 * int(np.prod(shape))
        first = 2 * int(rng.integers(len(block) // 2))  # so that no two tensors are alike
        while left:
            part = memoryview(block)[first : first + left]
            out.write(part)
            left -= len(part)
            first = 0
    out.flush()
    os.fsync(out.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    command(run)
