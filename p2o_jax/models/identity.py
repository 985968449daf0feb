"""What tells one model directory from another, without reading all of its weights."""

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
# of a file of weights that are read: the first, the last, and between them at equal distances
_NUM_BLOCKS = 66

Digests = dict[str, list[int | str]]  # [size in bytes, digest] by name


def digests(directory: Path) -> Digests:
    """Size and digest of each file that a model is made of: its config, tokenizer, chat template
    and weights.

    Of weights the digest is that of the header, which names every tensor, and of a sample of the
    contents: every trained model differs from its base in nearly all blocks.
    """
    names = sorted(
        {path.name for pattern in _PATTERNS for path in directory.glob(pattern) if path.is_file()}
    )
    return {name: [(directory / name).stat().st_size, _digest(directory / name)] for name in names}


def differing(before: Digests, now: Digests) -> list[str]:
    """What differs, in a few words for each file."""
    found = []
    for name in sorted({*before, *now}):
        if name not in now or name not in before:
            found.append(f"{name} {'is missing' if name in before else 'is new'}")
        elif before[name] != now[name]:
            sizes = f"{before[name][0]:,} bytes then, {now[name][0]:,} now"
            found.append(f"{name} has other contents ({sizes})")
    return found


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if path.suffix != ".safetensors" or size <= _NUM_BLOCKS * _BLOCK_BYTES:
            found.update(f.read())
        else:
            f.seek(0)
            length = f.read(8)
            found.update(length + f.read(min(int.from_bytes(length, "little"), size)))
            for i in range(_NUM_BLOCKS):
                f.seek((size - _BLOCK_BYTES) * i // (_NUM_BLOCKS - 1))
                found.update(f.read(_BLOCK_BYTES))
    return found.hexdigest()
