"""Files that are there whole or not at all, whenever the process is killed."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Writes the text to a file beside `path`, and puts that in its place once it is on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def write_json(path: Path, values: Any) -> None:
    """`write_whole` of indented JSON."""
    write_whole(path, json.dumps(values, indent=1))


def sync_folder(folder: Path) -> None:
    """Has all files in the folder, and their names, on disk."""
    for path in (*sorted(folder.rglob("*")), folder):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
