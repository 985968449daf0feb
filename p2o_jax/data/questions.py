"""The order of training questions: a pure function of (seed, epoch, step)."""

import random
from collections.abc import Sequence

from p2o_jax.types import Question


class Questions:
    """Questions in shuffled batches. Steps count from 0 through the whole run.

    Every epoch contains each question exactly once. ▲ The released code drops the questions that do
    not fill a last batch, different ones each epoch. Here the last batch of an epoch may be smaller
    than `per_step`, but is never empty.
    """

    def __init__(self, questions: Sequence[Question], per_step: int, seed: int):
        assert questions and per_step > 0, (len(questions), per_step)
        self.questions = tuple(questions)
        self.per_step = per_step
        self.seed = seed
        self.steps_per_epoch = -(-len(self.questions) // per_step)
        self._by_id = {q.id: q for q in self.questions}
        self._order: tuple[int, list[Question]] | None = None  # of one epoch: steps come in order
        assert len(self._by_id) == len(self.questions), "question ids must differ"

    def __len__(self) -> int:
        return len(self.questions)

    def batch(self, step: int) -> list[Question]:
        """The questions of a step: `per_step` of them, or the remainder of the epoch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self.per_step
        return self._ordered(epoch)[start : start + self.per_step]

    def further(self, step: int) -> list[Question]:
        """All questions outside the step's batch, in an order that depends on the step."""
        own = {q.id for q in self.batch(step)}
        others = [q for q in self.questions if q.id not in own]
        random.Random(f"{self.seed}/further/{step}").shuffle(others)
        return others

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the step belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step_after: int) -> bool:
        """Whether an epoch is complete after `step_after` steps."""
        return step_after > 0 and step_after % self.steps_per_epoch == 0

    def by_id(self, ids: Sequence[str]) -> list[Question]:
        """The questions with these ids, in the order of the ids.

        Raises:
            KeyError: no question has one of the ids.
        """
        return [self._by_id[i] for i in ids]

    def _ordered(self, epoch: int) -> list[Question]:
        if self._order is None or self._order[0] != epoch:
            order = list(self.questions)
            random.Random(f"{self.seed}/order/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
