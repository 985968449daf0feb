"""The versions that the results of a run depend on."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

from p2o_jax.runtime.subprocesses import environment


def installed() -> dict[str, str]:
    """Versions of what the figures depend on, and the commit where there is one."""
    root = Path(__file__).parents[2]
    names = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "numpy",
        "gepa",
        "math-verify",
        "p2o-jax",
    )
    recorded = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "devices": str(jax.devices()[:1]),
    }
    for name in names:
        try:
            recorded[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            recorded[name] = "not installed"
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        head = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        recorded["commit"] = head.stdout.strip()
    return recorded
