"""Questions of our own in the columns and the layouts in which the hubs hold the benchmarks and
training sets.
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

SUMS = [(f"What is {i} + {3 * i}?", str(4 * i)) for i in range(2, 8)]


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def saved(path: Path, splits: dict[str, list[dict]]) -> Path:
    """Writes splits in the format of `save_to_disk` of `datasets`."""
    import datasets

    splits_by_name = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    )
    splits_by_name.save_to_disk(str(path))
    return path


def tfds_folder(data_dir: Path, splits: dict[str, list[dict]]) -> Path:
    """As TensorFlow Datasets prepares texts in array_record files; the folder of the data set's
    version.
    """
    import tensorflow_datasets as tfds

    class Sums(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            columns = next(iter(splits.values()))[0]
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({c: tfds.features.Text() for c in columns}),
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    builder = Sums(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return Path(builder.data_dir)


def aime24(folder: Path) -> Path:
    rows = [
        {
            "id": i,
            "problem": q,
            "solution": f"It is \\boxed{{{a}}}.",
            "answer": a,
            "url": "",
            "year": "2024",
        }
        for i, (q, a) in enumerate(SUMS)
    ]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return folder


def aime25(folder: Path) -> Path:
    return jsonl(
        folder / "train.jsonl",
        [{"id": i, "problem": q, "answer": int(a)} for i, (q, a) in enumerate(SUMS)],
    )


def amc23(folder: Path) -> Path:
    return saved(
        folder,
        {
            "test": [
                {"id": i, "question": q, "answer": f"{a}.0", "url": ""}
                for i, (q, a) in enumerate(SUMS)
            ]
        },
    )


def math500(folder: Path) -> Path:
    rows = [
        {
            "problem": q,
            "solution": f"\\boxed{{{a}}}",
            "answer": a,
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/algebra/{i}.json",
        }
        for i, (q, a) in enumerate(SUMS)
    ]
    return jsonl(folder / "test.jsonl", rows)


def minerva(folder: Path) -> Path:
    return parquet(
        folder / "test-00000-of-00001.parquet",
        [{"question": q, "answer": rf"\frac{{{a}}}{{2}}"} for q, a in SUMS],
    )


def olympiadbench(folder: Path) -> Path:
    rows = [
        {
            "id": i,
            "question": q,
            "solution": ["Add."],
            "final_answer": [f"${a}$"] if i else ["1", "2"],
            "is_multiple_answer": not i,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        }
        for i, (q, a) in enumerate(SUMS)
    ]
    return saved(folder, {"train": rows})


def gsm8k_rows(pairs=SUMS) -> list[dict]:
    return [{"question": q, "answer": f"Adding gives <<1+1=2>>{a}.\n#### {a}"} for q, a in pairs]


def gsm8k(folder: Path) -> Path:
    parquet(folder / "main" / "train-00000-of-00001.parquet", gsm8k_rows([("What is 1 + 1?", "2")]))
    parquet(
        folder / "main" / "test-00000-of-00001.parquet",
        gsm8k_rows([*SUMS, ("How many are 1 + 1,233?", "1,234")]),
    )
    return folder


BENCHMARKS = {
    "aime24": aime24,
    "aime25": aime25,
    "amc23": amc23,
    "amc23_83": aime25,
    "math500": math500,
    "minerva": minerva,
    "olympiadbench": olympiadbench,
}
