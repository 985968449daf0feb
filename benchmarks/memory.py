"""Peak memory of processes, from /proc (Linux). Uses the standard library only."""

import os
import threading
from pathlib import Path


class PeakMemory:
    """A context manager that samples the resident memory of a process and its descendants.

    `bytes` is the largest sum. Pages shared between processes count once per process, so that it is
    an upper bound.
    """

    def __init__(self, pid: int, every_s: float = 0.2):
        self.pid, self.every_s, self.bytes = pid, every_s, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, tree_bytes(self.pid))
            self._stop.wait(self.every_s)


def tree_bytes(pid: int) -> int:
    """The current resident bytes of a process and its descendants; 0 if it has ended."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = _read(entry / "stat").rpartition(")")[2].split()
            if fields:
                parents[int(entry.name)] = int(fields[1])
    tree, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(
        page * int((_read(Path("/proc", str(p), "statm")).split() or ["0", "0"])[1]) for p in tree
    )


def own_peak_bytes() -> int:
    """The peak resident memory of this process, from the kernel."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def own_bytes() -> int:
    """The current resident memory of this process."""
    return os.sysconf("SC_PAGE_SIZE") * int(
        (_read(Path("/proc/self/statm")).split() or ["0", "0"])[1]
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended
        return ""
