"""Memory that the C library keeps for later after it was freed.

Arrays on a CPU come from its `malloc`. Sampling and compiling leave gigabytes of pieces that are
free, but too small for the arrays of an update.
"""

import ctypes
import os


def give_back(platform: str) -> None:
    """Returns freed memory to the system, if JAX's arrays are on a CPU and the C library can do it
    (glibc).
    """
    if platform != "cpu":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def held_bytes() -> int:
    """The resident memory of this process; 0 on systems other than Linux."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
