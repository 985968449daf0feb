"""A stand-in for the reasoning-gym library: its interface, with three tasks that take no time.

Workers import it from a folder at the head of the import path.
"""

import textwrap
from pathlib import Path

INIT = """
    from reasoning_gym.factory import create_dataset
"""
FACTORY = """
    from dataclasses import dataclass


    @dataclass
    class Config:
        size: int = 500
        seed: int = 7
        step: int = 1
        ratio: float = 0.5
        loud: bool = False
        names: tuple = ()

        def validate(self):
            assert self.step > 0, "step must be positive"


    class Sums:
        '''Half a point for an answer that is off by one; metadata with a tuple and integer keys.'''

        def __init__(self, config):
            self.config = config

        def __getitem__(self, index):
            if self.config.ratio > 9:
                raise RuntimeError("no such entry")
            first = self.config.seed + index
            metadata = {"terms": (first, self.config.step), "by_place": {0: first}}
            question = f"{first} + {self.config.step}?"
            return {"question": question, "answer": str(sum(metadata["terms"])),
                    "metadata": metadata}

        def score_answer(self, answer, entry):
            terms = entry["metadata"]["terms"]
            assert isinstance(terms, tuple) and entry["metadata"]["by_place"][0] == terms[0]
            return max(0.0, 1 - abs(int(answer) - sum(terms)) / 2)


    class Hangs(Sums):
        '''Entries without an answer, and a scorer that never ends for one response.'''

        def __getitem__(self, index):
            return {"question": f"hang {index}", "answer": None, "metadata": {}}

        def score_answer(self, answer, entry):
            while answer == "hang":
                pass
            return {"much": 7.0}.get(answer, 1.0)


    class Evaluates(Sums):
        '''A scorer that passes the answer to eval.'''

        def __getitem__(self, index):
            words = ",".join({"one", "two", "three", "four", "five"})
            return {"question": f"list {words}", "answer": "[1]", "metadata": {}}

        def score_answer(self, answer, entry):
            return float(eval(answer) == eval(entry["answer"]))


    DATASETS = {"sums": (Sums, Config), "hangs": (Hangs, Config), "evaluates": (Evaluates, Config)}


    def create_dataset(name, **settings):
        dataset, config = DATASETS[name]
        config = config(**settings)
        config.validate()
        return dataset(config=config)
"""


def install(folder: Path) -> Path:
    """Writes the library to a folder, which has to be put on the import path."""
    package = folder / "reasoning_gym"
    package.mkdir()
    for name, text in (("__init__", INIT), ("factory", FACTORY)):
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    return folder
