"""The environment of processes that this package starts: an allow-list, so no keys and tokens."""

import os
from collections.abc import Iterable

_NAMES = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP",
    "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "NPROC",
    "PYTHONHOME", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONNOUSERSITE",
    "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX",
)  # fmt: skip


def environment(names: Iterable[str] = ()) -> dict[str, str]:
    """This process's variables for paths, language, Python and threads, and those of the given
    names.

    It keeps keys from programs that would log or send their environment. It does not hide them from
    malicious code: a process of the same user can read files below HOME and /proc/PID/environ.
    """
    allowed = {*_NAMES, *names}
    return {
        name: value
        for name, value in os.environ.items()
        if name in allowed or name.startswith("LC_") or name.endswith("_NUM_THREADS")
    }
