"""The environment of processes that this package starts: an allow-list, without keys and tokens."""

import os
from collections.abc import Iterable

_NAMES = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TEMP",
    "TMP",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NPROC",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "PYTHONUTF8",
    "PYTHONIOENCODING",
    "PYTHONNOUSERSITE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
)


def environment(names: Iterable[str] = ()) -> dict[str, str]:
    """This process's variables for paths, language, Python and threads, and those in `names`.

    This keeps keys away from programs that log or send their environment. It does not hide them
    from malicious code: a process of the same user can read /proc/PID/environ and files below HOME.
    """
    allowed = {*_NAMES, *names}
    return {
        name: value
        for name, value in os.environ.items()
        if name in allowed or name.startswith("LC_") or name.endswith("_NUM_THREADS")
    }
