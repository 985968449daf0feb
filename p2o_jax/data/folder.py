"""Reads records from folders, Hugging Face `datasets` and TensorFlow Datasets."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.data import tables
from p2o_jax.data.tables import Row

_SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


def read(path: Path, split: str) -> Iterator[Row]:
    """Yields the records of a folder.

    The folder was saved by `datasets` (save_to_disk), belongs to TensorFlow Datasets, or holds
    files that `tables` reads.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _read_saved(path, split)
    elif (path / "features.json").exists():
        yield from _read_builder(lambda tfds: tfds.builder_from_directory(path), split, path)
    else:
        yield from _read_files(path, split)


def read_hub(name: str, subset: str, split: str) -> Iterator[Row]:
    """Yields the records of a data set on the Hugging Face hub, downloading it if not cached."""
    import datasets

    try:
        splits = [split] if split else datasets.get_dataset_split_names(name, subset or None)
        if problem := _not_one(splits, split):
            yield 0, problem
            return
        rows = datasets.load_dataset(name, subset or None, split=splits[0])
    except Exception as e:  # the edge: the network, the name, or another library's reader fails
        yield 0, f"cannot be loaded: {type(e).__name__}: {_first_line(e)}"
        return
    yield from enumerate(rows, 1)  # pyright: ignore[reportReturnType]


def read_tfds(name: str, split: str, data_dir: str) -> Iterator[Row]:
    """Yields the records of a data set of TensorFlow Datasets.

    Prepares the data set if it is not in `data_dir`, which may need TensorFlow.
    """

    def builder(tfds: Any) -> Any:
        prepared = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        prepared.download_and_prepare()
        return prepared

    stored = Path(data_dir).expanduser() / re.split("[/:]", name)[0] if data_dir else None
    yield from _read_builder(builder, split, stored)


def _read_saved(path: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as e:  # the edge: damaged folders raise any exception their readers raise
        yield 0, f"cannot be loaded: {type(e).__name__}: {_first_line(e)}"
        return
    if isinstance(saved, datasets.DatasetDict):
        splits = [split] if split in saved else [str(name) for name in saved]
        if problem := _not_one(splits, split if split in saved else ""):
            yield 0, f"no split {split}: {problem}" if split else problem
            return
        saved = saved[splits[0]]
    yield from enumerate(saved, 1)  # pyright: ignore[reportReturnType]


def _read_builder(make: Any, split: str, stored: Path | None) -> Iterator[Row]:
    """The records of the builder that `make(tfds)` returns.

    `stored` is the folder of its data, or a parent of that folder.
    """
    import tensorflow_datasets as tfds

    try:
        if foreign := _foreign_classes(stored) if stored else []:
            problem = (
                f"features.json: {', '.join(foreign)}: classes outside TensorFlow Datasets"
                " would run code, and are not loaded"
            )
            yield 0, problem
            return
        builder = make(tfds)
        splits = [split] if split else list(builder.info.splits)
        if problem := _not_one(splits, split):
            yield 0, problem
            return
        source = builder.as_data_source(split=splits[0])
    except Exception as e:  # the edge: as above
        yield 0, f"cannot be loaded: {type(e).__name__}: {_first_line(e)}"
        return
    for number in range(len(source)):
        yield number + 1, _plain(source[number])


def _foreign_classes(folder: Path) -> list[str]:
    """Feature classes named in the folder that do not belong to TensorFlow Datasets.

    TensorFlow Datasets imports any module that features.json names.
    """
    foreign: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            # older versions wrote "type"
            names = [value.get(key) for key in ("pythonClassName", "type")]
            foreign.extend(
                n
                for n in names
                if isinstance(n, str) and "." in n and not n.startswith("tensorflow_datasets.")
            )
        for part in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            look(part)

    for path in sorted(folder.rglob("features.json")):
        look(json.loads(path.read_text(encoding="utf-8")))
    return foreign


def _read_files(path: Path, split: str) -> Iterator[Row]:
    files = sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() in tables.READERS
        and p.is_file()
        and not _is_hidden(p.relative_to(path))
    )
    if not files:
        problem = (
            f"a folder without {', '.join(tables.READERS)} files, and not one of `datasets` or"
            " TensorFlow Datasets"
        )
        yield 0, problem
        return
    by_split: dict[str, list[Path]] = {}
    for p in files:
        by_split.setdefault(_file_split(p.relative_to(path)), []).append(p)
    wanted = _SPLITS.get(split, split)
    if split and wanted not in by_split:
        splits = ", ".join(sorted(filter(None, by_split))) or "none that name one"
        yield 0, f"no files of the split {split}; there are {splits}"
        return
    if problem := _not_one(sorted(by_split), split):
        yield 0, problem
        return
    number = 0
    for p in by_split[wanted] if split else files:
        for line, record in tables.read(p, alone=True):
            number += 1
            yield (
                number,
                f"{p.relative_to(path)}:{line}: {record}" if isinstance(record, str) else record,
            )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_split(path: Path) -> str:
    """The split that a file's name begins with, or that a parent folder is named after, or ""."""
    names = [re.split(r"[-_.]", path.name)[0], *reversed(path.parts[:-1])]
    return next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), "")


def _not_one(splits: Sequence[str], asked: str) -> str:
    """A problem if it is not clear which split is meant, else ""."""
    if asked or len(splits) == 1:
        return ""
    return (
        f"it has the splits {', '.join(name or '(none)' for name in splits)}; name one, as in"
        f" @{next(filter(None, splits), 'train')}"
    )


def _plain(value: Any) -> Any:
    """A value of TensorFlow Datasets as JSON types: strings, numbers, lists and objects."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
        # bytes that are not UTF-8 become surrogates, which are refused later
        return value.decode("utf-8", "surrogateescape")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
