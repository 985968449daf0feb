"""Identity of a model directory, determined without reading all of its weights."""

import hashlib
import os
from pathlib import Path

from p2o_jax.models.hf_config import TOKENIZER_FILES

_PATTERNS = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "*.safetensors",
    "*.safetensors.index.json",
)
_BLOCK_BYTES = 4096
# blocks of a weight file that are read: first, last, and equally spaced ones between
_NUM_BLOCKS = 66

Digests = dict[str, list[int | str]]  # [size in bytes, digest] by name


def digests(directory: Path) -> Digests:
    """Returns size and digest of each of a model's files: config, tokenizer, chat template and
    weights.

    The digest of a weight file covers its header, which names every tensor, and a sample of its
    contents: a trained model differs from its base in nearly all blocks.
    """
    names = sorted(
        {path.name for pattern in _PATTERNS for path in directory.glob(pattern) if path.is_file()}
    )
    return {name: [(directory / name).stat().st_size, _digest(directory / name)] for name in names}


def differing(before: Digests, now: Digests) -> list[str]:
    """Returns a short description of each file that differs."""
    lines = []
    for name in sorted({*before, *now}):
        if name not in now or name not in before:
            lines.append(f"{name} {'is missing' if name in before else 'is new'}")
        elif before[name] != now[name]:
            sizes = f"{before[name][0]:,} bytes then, {now[name][0]:,} now"
            lines.append(f"{name} has other contents ({sizes})")
    return lines


def _digest(path: Path) -> str:
    """Returns the digest of a file, or of the header and sampled blocks of a large weight file."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if path.suffix != ".safetensors" or size <= _NUM_BLOCKS * _BLOCK_BYTES:
            digest.update(f.read())
        else:
            f.seek(0)
            length = f.read(8)
            digest.update(length + f.read(min(int.from_bytes(length, "little"), size)))
            for i in range(_NUM_BLOCKS):
                f.seek((size - _BLOCK_BYTES) * i // (_NUM_BLOCKS - 1))
                digest.update(f.read(_BLOCK_BYTES))
    return digest.hexdigest()
