"""What a loop records: metrics, rows and the lines of the terminal. Where they go is
`run_log`'s.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2o_jax.config import Config, has_hints, reflector
from p2o_jax.config.reward_terms import CORRECT
from p2o_jax.data.questions import Questions
from p2o_jax.gepa import api, reasons, to_gepa_result
from p2o_jax.p2o import question_history
from p2o_jax.rewards.boxed import last_boxed
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.gepa_adapter import REFLECT, num_set_aside
from p2o_jax.runtime import distributed, files, preemption
from p2o_jax.runtime.console import Reporter
from p2o_jax.state import RunState
from p2o_jax.tracking import notices
from p2o_jax.tracking.clock import Pace
from p2o_jax.tracking.metric_names import ledger_metrics
from p2o_jax.tracking.run_log import RunLog
from p2o_jax.tracking.writers import WandbWriter, Writer
from p2o_jax.types import Rollout, SearchResult, template_id


class LoopRecorder:
    """What the records of every loop have in common: the log, the clocks and the watchdog.

    On processes other than the first it only keeps the clocks.

    Args:
        cfg: the whole config.
        workdir: the run directory.
        reporter: receives the lines, and times the phases.
        compiles: counts programs as they are compiled.
        writers: receive the records, too.
    """

    def __init__(
        self,
        cfg: Config,
        workdir: Path,
        reporter: Reporter,
        compiles: distributed.CompileCounter,
        writers: Sequence[Writer] = (),
    ):
        self.cfg, self.workdir, self.reporter, self.compiles = cfg, workdir, reporter, compiles
        self._writers = writers
        self.log: RunLog | None = None
        self.watchdog = preemption.Watchdog(cfg.train.watchdog_s)
        self.pace = Pace()
        self._compile_seconds = 0.0

    def open(self, tick: int, step: int) -> None:
        """Opens the files of a run that continues at this tick and step."""
        if distributed.is_main_process():
            wandb = self.cfg.train.wandb_project
            further = [WandbWriter(self.workdir, self.cfg)] if wandb else []
            self.log = RunLog(self.workdir, tick, step, self.reporter, [*further, *self._writers])
        self.watchdog.restart()

    def close(self) -> None:
        """Stops the watchdog and closes the files."""
        self.watchdog.close()
        if self.log:
            self.log.close()

    def alive(self) -> None:
        """Something was done: restarts the watchdog's clock, and writes down the run's."""
        self.watchdog.restart()
        if self.log:
            self.log.clock.write()

    def times(self) -> dict[str, float]:
        """The seconds of each phase since the last call, and those of compilation in them."""
        times = {
            f"time/{name}_s": seconds for name, seconds in self.reporter.take_seconds().items()
        }
        times["time/compile_s"], self._compile_seconds = (
            self.compiles.seconds - self._compile_seconds,
            self.compiles.seconds,
        )
        return times


class Recorder(LoopRecorder):
    """Records the P²O loop.

    Args:
        cfg: the whole config.
        workdir: the run directory.
        questions: the training questions, whose epochs the lines name.
        engine: counts the work of sampling.
        reporter: receives the lines, and times the phases.
        compiles: counts programs as they are compiled.
        writers: receive the records, too.
    """

    def __init__(
        self,
        cfg: Config,
        workdir: Path,
        questions: Questions,
        engine: Engine,
        reporter: Reporter,
        compiles: distributed.CompileCounter,
        writers: Sequence[Writer] = (),
    ):
        super().__init__(cfg, workdir, reporter, compiles, writers)
        self.questions, self.engine = questions, engine
        self.flat_rewards = preemption.FlatRewards(cfg.train.flat_rewards_steps)
        self.notices = notices.Notices()

    def search_progress(self, stats: Mapping[str, float], fates: Sequence[str]) -> None:
        """A line for an iteration of GEPA, with what became of its proposals."""
        self.alive()
        rejected = reasons(fates)
        self.reporter.line(
            f"  gepa iteration {stats['iterations']:.0f}:"
            f" {stats['rollouts_charged']:.0f}/{stats['budget']:.0f} rollouts,"
            f" {fates.count('accepted')} of {len(fates)} accepted"
            + (f"; rejected: {rejected}" if rejected else "")
            + f"; best dev {stats['best_dev_score']:.2f}, covered {stats['frac_dev_covered']:.2f}"
            + (f" ({_expected(stats)})" if "value_search" in stats else "")
        )

    def step(
        self,
        before: RunState,
        after: RunState,
        rollouts: Sequence[Rollout],
        values: dict[str, float],
    ) -> None:
        """A policy step's metrics, samples and line, and a notice where nothing is to be learnt."""
        self.alive()
        values |= self._running(after)
        values["perf/tokens_per_s"] = values["rollout/generated_tokens"] / max(
            values.get("time/rollout_s", 0.0), 1e-9
        )
        total = self.cfg.train.epochs * self.questions.steps_per_epoch
        tokens, limit = values["ledger/generated_tokens"], self.cfg.train.max_generated_tokens
        progress = max(after.step / max(total, 1), tokens / limit if limit else 0.0)
        self.reporter.line(
            f"step {after.step}/{total}  reward {values['reward/mean']:.3f}  zero-advantage"
            f" {values['rollout/frac_zero_advantage']:.2f}  hard this epoch"
            f" {values['hard/questions_epoch']:.0f}  truncated"
            f" {values['rollout/frac_truncated']:.2f}  {values['perf/tokens_per_s']:,.0f} tokens/s "
            f" {tokens:,.0f} tokens  {step_seconds(values)}  {self.pace.left(progress)}".rstrip()
        )
        scores = [r.verdict.answer_score for r in rollouts]
        if notice := self.flat_rewards.notice(min(scores), max(scores), values):
            self.reporter.line(notice)
        if before.step == 0 and (notice := _unrewarded_boxes(rollouts)):
            self.reporter.line(notice)
        for line in self.notices.of_step(values):
            self.reporter.line(line)
        if self.log:
            self.log.metrics(before.tick, before.step, values)
            shown = rollouts[:: max(len(rollouts) // max(self.cfg.train.num_samples_logged, 1), 1)][
                : self.cfg.train.num_samples_logged
            ]
            self.log.rows("samples", before.tick, [_sample(r, before.step) for r in shown])
            if after.phase == "prompts":
                self.log.rows("questions", before.tick, self._question_rows(after))

    def search(self, before: RunState, after: RunState, result: SearchResult | None) -> None:
        """A prompt phase's metrics, templates and line."""
        self.alive()
        epoch = self.questions.epoch(max(before.step - 1, 0))
        values: dict[str, float] = {
            "gepa/hard_questions": len(before.hard_ids),
            "gepa/skipped": float(result is None),
        }
        values |= {
            f"hard/{name}": value for name, value in question_history.stats(before.history).items()
        }
        if result is not None:
            values |= {f"gepa/{name}": value for name, value in result.stats.items()}
            spent = after.ledger.total("generated_tokens") - before.ledger.total("generated_tokens")
            values["gepa/generated_tokens"] = spent
            values["gepa/journals_set_aside"] = num_set_aside(self.workdir, epoch)
            values |= _api_metrics(before, after) if reflector(self.cfg) == "api" else {}
            self.reporter.line(
                f"epoch {epoch}: {len(before.hard_ids)} hard questions, {chosen(result)},"
                f" {spent:,.0f} tokens"
            )
            if begun := _beginning(result):
                self.reporter.line(begun)
            if "value_search" in result.stats and not result.stats["iterations"]:
                self.reporter.line(f"  no search: {_expected(result.stats)}")
            elif len(result.templates) == 1:
                why = reasons(event["outcome"] for event in result.events)
                rejected = (
                    f"all {len(result.events)} proposals were rejected: {why}"
                    if why
                    else "nothing was proposed"
                )
                self.reporter.line(
                    f"!!! epoch {epoch}: only the empty template, so all rollouts are plain as in"
                    f" GRPO; {rejected}"
                )
            for line in notices.of_search([event["outcome"] for event in result.events]):
                self.reporter.line(line)
        elif reflector(self.cfg) and self.cfg.gepa.schedule != "first":
            rule = f"fewer than config.gepa.min_hard={self.cfg.gepa.min_hard}: no prompt phase"
            self.reporter.line(f"epoch {epoch}: {len(before.hard_ids)} hard questions, {rule}")
        elif has_hints(self.cfg):
            hinted = f"{len(after.assignment.templates)} questions are asked under hints"
            self.reporter.line(f"epoch {epoch}: {len(before.hard_ids)} hard questions, {hinted}")
        if self.log:
            self.log.metrics(
                before.tick,
                before.step,
                values | self._running(after) | ledger_metrics(after.ledger),
            )
            if result is not None:
                texts = self._texts({*result.dev_ids, *result.train_ids})
                self.log.rows("templates", before.tick, _template_rows(result, epoch, texts))
                path = self.workdir / "gepa" / f"epoch_{epoch}.json"
                path.parent.mkdir(exist_ok=True)
                files.write_whole(path, json.dumps(to_gepa_result(result)))

    def evaluation(
        self,
        state: RunState,
        values: dict[str, float],
        row: dict[str, Any],
        spent: Mapping[str, float],
    ) -> None:
        """An evaluation's metrics and line."""
        self.alive()
        tokens = state.ledger.total("generated_tokens")
        shares = (
            {name: part["accuracy"] for name, part in row["sets"].items()}
            if "sets" in row
            else row["by_family"]
        )
        families = "  ".join(f"{name} {score:.2f}" for name, score in shares.items())
        asked = "accuracy under the best template" if row["template"] else "plain accuracy"
        self.reporter.line(
            f"eval at step {state.step}: {asked} {row['accuracy']:.3f}  ({families})  after"
            f" {tokens:,.0f} tokens"
        )
        if self.log:
            values |= (
                {"ledger/generated_tokens": tokens} | self.times() | ledger_metrics(state.ledger)
            )
            self.log.metrics(state.tick, state.step, values)
            untimed = {k: v for k, v in spent.items() if k != "seconds"}
            self.log.rows(
                "evaluations",
                state.tick,
                [{"step": state.step, "generated_tokens": tokens, **row, "cost": untimed}],
            )

    def _question_rows(self, state: RunState) -> list[dict[str, Any]]:
        """The rows of the epoch's questions, with the text of those that are hard for the first
        time.
        """
        rows = question_history.rows(state.history, state.hard_ids)
        new = {r["question_id"] for r in rows if r["first_hard_epoch"] == r["epoch"]}
        texts = self._texts(new)
        return [
            {**row, "question": texts[row["question_id"]]} if row["question_id"] in texts else row
            for row in rows
        ]

    def _texts(self, ids: Collection[str]) -> dict[str, str]:
        return {q.id: q.text for q in self.questions.by_id(sorted(ids))}

    def _running(self, after: RunState) -> dict[str, float]:
        return {
            **self.times(),
            "ledger/generated_tokens": after.ledger.total("generated_tokens"),
            "ledger/rollouts": after.ledger.total("rollouts"),
            "ledger/flops": after.ledger.total("flops"),
            "perf/compiles": self.compiles.count,
            **self.engine.take_work().metrics(),
        }


def _unrewarded_boxes(rollouts: Sequence[Rollout]) -> str:
    """A notice if no answer has a reward although some responses have a box, with one of them."""
    boxes = [(box, r) for r in rollouts if (box := last_boxed(r.text)) is not None]
    verdicts = [r.verdict for r in rollouts]
    rewards = [dict(v.by_reward).get(CORRECT, v.answer_score) for v in verdicts]
    if not boxes or any(rewards):
        return ""
    box, rollout = boxes[0]
    return (
        "!!! all rewards for answers in the first step are 0, although"
        f" {len(boxes) / len(rollouts):.0%} of the responses have a closed box, such as"
        f" {box[:60]!r} where the reference answer is"
        f" {rollout.prompt.question.answer[:60]!r}. Are these the answers that the questions ask"
        " for? (config.data.answer_field, config.data.answers, config.reward; samples.jsonl)"
    )


def step_seconds(values: Mapping[str, float]) -> str:
    """The seconds of a step, all of its phases together."""
    phases = (v for k, v in values.items() if k.startswith("time/") and k != "time/compile_s")
    return f"{sum(phases):.1f} s"


def chosen(result: SearchResult) -> str:
    """The templates of the cover, by number; whether one is the empty one."""
    count = sum(bool(result.templates[z].strip()) for z in result.cover)
    empty = len(result.cover) - count
    if not count:
        return "only the empty template chosen" if empty else "no template chosen"
    return f"{count} template{'s' * (count != 1)} chosen" + ", and the empty one" * bool(empty)


def _api_metrics(before: RunState, after: RunState) -> dict[str, float]:
    """What a prompt phase met with at the endpoint."""
    then, now = (state.ledger.costs.get(REFLECT, {}) for state in (before, after))
    return {f"gepa/{name}": now.get(name, 0) - then.get(name, 0) for name in api.STATS}


def _expected(stats: Mapping[str, float]) -> str:
    """The two numbers of the latest decision on an iteration."""
    return (
        f"informative groups expected of an iteration {stats['value_search']:.2f}, of training for"
        f" its tokens {stats['value_training']:.2f}"
    )


def _beginning(result: SearchResult) -> str:
    """A line about the templates that a phase began with; empty if there was but the empty one."""
    given = result.parents.count(None) - 1
    dropped = [event["outcome"] for event in result.events if event["parent"] is None]
    if not given and not dropped:
        return ""
    left_out = f"; left out: {reasons(dropped)}" if dropped else ""
    return f"  it began with the empty template and {given} given{left_out}"


def _sample(r: Rollout, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "question_id": r.prompt.question.id,
        "question": r.prompt.question.text,
        "answer": r.prompt.question.answer,
        "template": r.prompt.template,
        "response": r.text,
        "score": r.verdict.answer_score,
        "status": r.verdict.status,
        **({"by_reward": dict(r.verdict.by_reward)} if r.verdict.by_reward else {}),
        "tokens": len(r.completion.token_ids),
        "stopped": r.completion.stopped,
    }


def _template_rows(
    result: SearchResult, epoch: int, questions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row per candidate (its place in the cover, dev scores by question) and per rejected
    proposal. The first one has the texts of all `questions` by id.
    """
    rows: list[dict[str, Any]] = []
    for z, (text, parent, scores) in enumerate(
        zip(result.templates, result.parents, result.score_ZN, strict=True)
    ):
        dev = dict(zip(result.dev_ids, scores, strict=True))
        rank = result.cover.index(z) if z in result.cover else None
        mean = sum(scores) / max(len(scores), 1)
        row = {
            "epoch": epoch,
            "candidate": z,
            "text": text,
            "template_id": template_id(text),
            "parent": parent,
            **({"questions": questions} if z == 0 else {}),
        }
        rows.append({**row, "dev_score": mean, "cover_rank": rank, "dev": dev})
    return rows + [
        {"epoch": epoch, **event} for event in result.events if event["outcome"] != "accepted"
    ]
