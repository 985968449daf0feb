"""Records of folders and of the two hubs: Hugging Face `datasets` and TensorFlow Datasets."""

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
    """The records of a folder: of `datasets` (save_to_disk), of TensorFlow Datasets, or of the
    files in it.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _read_saved(path, split)
    elif (path / "features.json").exists():
        yield from _read_builder(lambda tfds: tfds.builder_from_directory(path), split, path)
    else:
        yield from _read_files(path, split)


def read_hub(name: str, subset: str, split: str) -> Iterator[Row]:
    """The records of a data set of the Hugging Face hub, downloaded by `datasets` where it is
    not in its cache.
    """
    import datasets

    try:
        splits = [split] if split else datasets.get_dataset_split_names(name, subset or None)
        if problem := _not_one(splits, split):
            yield 0, problem
            return
        rows = datasets.load_dataset(name, subset or None, split=splits[0])
    except Exception as e:  # the edge: no network, no such name, another library's readers, all with errors of their own
        yield 0, f"cannot be loaded: {type(e).__name__}: {_first_line(e)}"
        return
    yield from enumerate(rows, 1)  # pyright: ignore[reportReturnType]


def read_tfds(name: str, split: str, data_dir: str) -> Iterator[Row]:
    """The records of one of TensorFlow Datasets, prepared where it is not in `data_dir` (which
    may need TensorFlow).
    """

    def builder(tfds: Any) -> Any:
        found = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        found.download_and_prepare()
        return found

    stored = Path(data_dir).expanduser() / re.split("[/:]", name)[0] if data_dir else None
    yield from _read_builder(builder, split, stored)


def _read_saved(path: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as e:  # the edge: damaged folders raise whatever their readers raise
        yield 0, f"cannot be loaded: {type(e).__name__}: {_first_line(e)}"
        return
    if isinstance(found, datasets.DatasetDict):
        splits = [split] if split in found else [str(name) for name in found]
        if problem := _not_one(splits, split if split in found else ""):
            yield 0, f"no split {split}: {problem}" if split else problem
            return
        found = found[splits[0]]
    yield from enumerate(found, 1)  # pyright: ignore[reportReturnType]


def _read_builder(make: Any, split: str, stored: Path | None) -> Iterator[Row]:
    """The records of the builder that `make(tfds)` returns; `stored` is its folder of data, or
    one above.
    """
    import tensorflow_datasets as tfds

    try:
        if foreign := _foreign_classes(stored) if stored else []:
            yield (
                0,
                (
                    f"features.json: {', '.join(foreign)}: classes outside TensorFlow Datasets"
                    " would run code, and are not loaded"
                ),
            )
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
    """Classes of features that the folder names and that are not of TensorFlow Datasets, which
    imports any module named there.
    """
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            # "type": as older versions wrote it
            names = [value.get(key) for key in ("pythonClassName", "type")]
            found.extend(
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
    return found


def _read_files(path: Path, split: str) -> Iterator[Row]:
    found = sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() in tables.READERS
        and p.is_file()
        and not _is_hidden(p.relative_to(path))
    )
    if not found:
        yield (
            0,
            (
                f"a folder without {', '.join(tables.READERS)} files, and not one of `datasets` or"
                " TensorFlow Datasets"
            ),
        )
        return
    by_split: dict[str, list[Path]] = {}
    for p in found:
        by_split.setdefault(_file_split(p.relative_to(path)), []).append(p)
    wanted = _SPLITS.get(split, split)
    if split and wanted not in by_split:
        yield (
            0,
            (
                f"no files of the split {split}; there are"
                f" {', '.join(sorted(filter(None, by_split))) or 'none that name one'}"
            ),
        )
        return
    if problem := _not_one(sorted(by_split), split):
        yield 0, problem
        return
    number = 0
    for p in by_split[wanted] if split else found:
        for line, record in tables.read(p, alone=True):
            number += 1
            yield (
                number,
                f"{p.relative_to(path)}:{line}: {record}" if isinstance(record, str) else record,
            )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_split(path: Path) -> str:
    """The split that a file's name begins with, or that a folder above it is called, else none."""
    names = [re.split(r"[-_.]", path.name)[0], *reversed(path.parts[:-1])]
    return next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), "")


def _not_one(splits: Sequence[str], asked: str) -> str:
    """What is wrong where not one split is meant."""
    if asked or len(splits) == 1:
        return ""
    return (
        f"it has the splits {', '.join(name or '(none)' for name in splits)}; name one, as in"
        f" @{next(filter(None, splits), 'train')}"
    )


def _plain(value: Any) -> Any:
    """A record of TensorFlow Datasets as JSON would have it: texts, numbers, lists, objects."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
        # halves of pairs are refused as no valid Unicode
        return value.decode("utf-8", "surrogateescape")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
