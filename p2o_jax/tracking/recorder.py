"""The records of a run: JSONL files, TensorBoard events, Weights & Biases, and the lines that the
terminal shows.

`tick` (policy steps and prompt phases together) says which rows a checkpoint has seen: on resume
later rows are cut off, so that no row is there twice or missing.
"""

import dataclasses
import itertools
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from p2o_jax.config import Config, ConfigError
from p2o_jax.data.questions import Questions
from p2o_jax.gepa import api, reasons, to_gepa_result
from p2o_jax.p2o import question_history
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.gepa_adapter import num_set_aside
from p2o_jax.runtime import distributed, files, preemption
from p2o_jax.runtime.console import Reporter
from p2o_jax.state import RunState
from p2o_jax.tracking.metric_names import is_known, ledger_metrics
from p2o_jax.types import Rollout, SearchResult, template_id


class Recorder:
    """Writes down what the loop tells it. On processes other than the first it only keeps the
    clocks.
    """

    def __init__(
        self,
        cfg: Config,
        workdir: Path,
        questions: Questions,
        engine: Engine,
        reporter: Reporter,
        compiles: distributed.CompileCounter,
    ):
        self.cfg, self.workdir, self.questions, self.engine = cfg, workdir, questions, engine
        self.reporter, self.compiles = reporter, compiles
        self.log: RunLog | None = None
        self.watchdog = preemption.Watchdog(cfg.train.watchdog_s)
        self.flat_rewards = preemption.FlatRewards(cfg.train.flat_rewards_steps)
        self._compile_seconds = 0.0

    def open(self, tick: int, step: int) -> None:
        """Opens the files of a run that goes on at this tick and step."""
        if distributed.is_main_process():
            wandb = WandbRun(self.workdir, self.cfg) if self.cfg.train.wandb_project else None
            self.log = RunLog(self.workdir, tick, step, self.reporter, wandb)
        self.watchdog.restart()

    def close(self) -> None:
        self.watchdog.close()
        if self.log:
            self.log.close()

    def search_progress(self, stats: Mapping[str, float], fates: Sequence[str]) -> None:
        """A line for an iteration of GEPA, with what became of its proposals."""
        self._alive()
        rejected = reasons(fates)
        self.reporter.line(
            f"  gepa iteration {stats['iterations']:.0f}:"
            f" {stats['rollouts_charged']:.0f}/{stats['budget']:.0f} rollouts,"
            f" {fates.count('accepted')} of {len(fates)} accepted"
            + (f"; rejected: {rejected}" if rejected else "")
            + f"; best dev {stats['best_dev_score']:.2f}, covered {stats['frac_dev_covered']:.2f}"
        )

    def step(
        self,
        before: RunState,
        after: RunState,
        rollouts: Sequence[Rollout],
        values: dict[str, float],
    ) -> None:
        """A policy step's metrics, samples and line, and a notice where nothing is to be learnt."""
        self._alive()
        values |= self._running(after)
        values["perf/tokens_per_s"] = values["rollout/generated_tokens"] / max(
            values.get("time/rollout_s", 0.0), 1e-9
        )
        total = self.cfg.train.epochs * self.questions.steps_per_epoch
        self.reporter.line(
            f"step {after.step}/{total}  reward {values['reward/mean']:.3f}  zero-advantage"
            f" {values['rollout/frac_zero_advantage']:.2f}  hard"
            f" {values['hard/questions_epoch']:.0f}  truncated"
            f" {values['rollout/frac_truncated']:.2f}  {values['perf/tokens_per_s']:,.0f} tokens/s "
            f" {values['ledger/generated_tokens']:,.0f} tokens"
        )
        scores = [r.verdict.answer_score for r in rollouts]
        if notice := self.flat_rewards.notice(min(scores), max(scores), values):
            self.reporter.line(notice)
        if self.log:
            self.log.metrics(before.tick, before.step, values)
            shown = rollouts[:: max(len(rollouts) // max(self.cfg.train.num_samples_logged, 1), 1)][
                : self.cfg.train.num_samples_logged
            ]
            self.log.rows("samples", before.tick, [_sample(r, before.step) for r in shown])
            if after.phase == "prompts":
                self.log.rows(
                    "questions", before.tick, question_history.rows(after.history, after.hard_ids)
                )

    def search(self, before: RunState, after: RunState, result: SearchResult | None) -> None:
        """A prompt phase's metrics, templates and line."""
        self._alive()
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
            values |= _api_metrics(before, after) if self.cfg.gepa.reflector == "api" else {}
            self.reporter.line(
                f"epoch {epoch}: {len(before.hard_ids)} hard questions, {len(result.cover)}"
                f" templates chosen, {spent:,.0f} tokens"
            )
            if len(result.templates) == 1:
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
        elif self.cfg.gepa.enabled and self.cfg.gepa.schedule == "every_epoch":
            rule = f"fewer than config.gepa.min_hard={self.cfg.gepa.min_hard}: no prompt phase"
            self.reporter.line(f"epoch {epoch}: {len(before.hard_ids)} hard questions, {rule}")
        if self.log:
            self.log.metrics(
                before.tick,
                before.step,
                values | self._running(after) | ledger_metrics(after.ledger),
            )
            if result is not None:
                self.log.rows("templates", before.tick, _template_rows(result, epoch))
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
        self._alive()
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
                {"ledger/generated_tokens": tokens} | self._times() | ledger_metrics(state.ledger)
            )
            self.log.metrics(state.tick, state.step, values)
            untimed = {k: v for k, v in spent.items() if k != "seconds"}
            self.log.rows(
                "evaluations",
                state.tick,
                [{"step": state.step, "generated_tokens": tokens, **row, "cost": untimed}],
            )

    def _alive(self) -> None:
        """Something has been done: the watchdog's clock starts again, and the run's is written
        down.
        """
        self.watchdog.restart()
        if self.log:
            self.log.clock.write()

    def _running(self, after: RunState) -> dict[str, float]:
        return {
            **self._times(),
            "ledger/generated_tokens": after.ledger.total("generated_tokens"),
            "ledger/rollouts": after.ledger.total("rollouts"),
            "ledger/flops": after.ledger.total("flops"),
            "perf/compiles": self.compiles.count,
            **self.engine.take_work().metrics(),
        }

    def _times(self) -> dict[str, float]:
        times = {
            f"time/{name}_s": seconds for name, seconds in self.reporter.take_seconds().items()
        }
        times["time/compile_s"], self._compile_seconds = (
            self.compiles.seconds - self._compile_seconds,
            self.compiles.seconds,
        )
        return times


def problems(cfg: Config) -> list[str]:
    """A line if the records need a package that is not there."""
    if cfg.train.wandb_project and find_spec("wandb") is None:
        return [
            f"config.train.wandb_project={cfg.train.wandb_project} needs the package wandb: pip"
            " install 'p2o-jax[wandb]'"
        ]
    return []


class RunLog:
    """Writes the JSONL files of FILES, TensorBoard events, and points of Weights & Biases. Only
    the main process has one.
    """

    FILES = ("metrics", "samples", "templates", "evaluations", "questions")

    def __init__(
        self,
        workdir: Path,
        tick: int,
        step: int,
        reporter: Reporter,
        wandb: "WandbRun | None" = None,
    ):
        """Opens the records of a run that goes on at this tick and step: rows of that tick or later
        are cut off.

        What is missing or cannot be read before that is told: no kill leaves such a gap, but a
        power cut or another program may.
        """
        from tensorboardX import SummaryWriter

        self.workdir = workdir
        # which is no part of the run
        self.clock = Clock(workdir, reporter.begin + reporter.seconds.get("pretraining", 0.0))
        ticks = {name: cut(workdir / f"{name}.jsonl", tick, reporter.line) for name in self.FILES}[
            "metrics"
        ]
        if missing := sorted(set(range(tick)) - ticks):
            reporter.line(
                f"{workdir / 'metrics.jsonl'}: there are no rows of the ticks"
                f" {missing[:20]}{' ...' if missing[20:] else ''}"
            )
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step)
        self._wandb = wandb

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics.jsonl, and a point for each value in TensorBoard and at Weights &
        Biases.
        """
        unknown = sorted(name for name in values if not is_known(name))
        assert not unknown, f"not in metrics.METRICS: {unknown}"
        self.rows("metrics", tick, [{"step": step, **{k: float(v) for k, v in values.items()}}])
        for name, value in values.items():
            self._tensorboard.add_scalar(name, float(value), step)
        if self._wandb:
            self._wandb.metrics(tick, step, values)

    def rows(self, name: str, tick: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to NAME.jsonl."""
        with open(self.workdir / f"{name}.jsonl", "a", encoding="utf-8") as f:
            f.writelines(
                json.dumps({"tick": tick, **row}, ensure_ascii=True) + "\n" for row in rows
            )

    def close(self) -> None:
        self.clock.write()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.close()


class WandbRun:
    """The run at Weights & Biases, which is told its settings and metrics; WANDB_MODE=offline keeps
    them in WORKDIR/wandb for later.

    A run that goes on is the same one there, by the id in WORKDIR/wandb.json. Each point has a
    number of its own, which grows: what is computed again after a kill is not drawn twice, because
    the server takes no number that is not above the last it has.
    """

    def __init__(self, workdir: Path, cfg: Config):
        """Raises a ConfigError where Weights & Biases does not take the run: no key, no such
        project, no network.
        """
        import wandb

        path = workdir / "wandb.json"
        run_id = (
            json.loads(path.read_text(encoding="utf-8"))["id"]
            if path.exists()
            else secrets.token_hex(4)
        )
        files.write_json(path, {"id": run_id})
        try:
            self.run = wandb.init(
                project=cfg.train.wandb_project,
                id=run_id,
                name=workdir.name,
                resume="allow",
                dir=str(workdir),
                config=dataclasses.asdict(cfg),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as e:
            raise ConfigError(
                f"config.train.wandb_project={cfg.train.wandb_project}: {e} (WANDB_MODE=offline"
                " needs neither key nor network)"
            ) from e
        self.run.define_metric("*", step_metric="step")

    def metrics(self, tick: int, step: int, values: Mapping[str, float]) -> None:
        """Sends a point: an evaluation, or the step or prompt phase of the same tick, which
        comes after it.
        """
        number = 2 * tick + (not any(name.startswith("eval/") for name in values))
        self.run.log(
            {"step": step, **{name: float(value) for name, value in values.items()}},
            step=number,
            commit=True,
        )

    def close(self) -> None:
        self.run.finish()


class Clock:
    """WORKDIR/seconds.json: the seconds of every start of the run, this one's up to the last
    `write`.
    """

    def __init__(self, workdir: Path, begin: float):
        self.path, self.begin = workdir / "seconds.json", begin
        self.before = read_seconds(workdir)
        self.write()

    def write(self) -> None:
        files.write_json(self.path, [*self.before, round(time.monotonic() - self.begin, 2)])


def read_seconds(workdir: Path) -> list[float]:
    """The seconds of each start of a run, however it ended; work that was lost and done again is
    in them.
    """
    path = workdir / "seconds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def cut(path: Path, tick: int, log: Callable[[str], None]) -> set[int]:
    """The ticks that the JSONL file has rows of, after cutting off its rows from `tick` on, and
    what is no row.

    A last line that was torn off by a kill is of the tick that is done again. Any other line that
    is no row is reported, and the file as it was is kept beside it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [_row(line, _NEEDS.get(path.name, _no_needs)) for line in lines]
    whole = rows if lines and lines[-1].endswith(b"\n") else rows[:-1]
    bad = [number for number, row in enumerate(whole, start=1) if row is None]
    for number in bad:
        log(f"{path}:{number}: no row of this run's; cut out")
    if bad:
        copy = next(
            p
            for n in itertools.count(1)
            if not (p := path.with_name(f"{path.name}.damaged-{n}")).exists()
        )
        files.write_whole(copy, b"".join(lines))
        log(f"{path}: the file as it was is kept as {copy.name}")
    kept = [
        (line, row["tick"])
        for line, row in zip(lines, rows, strict=True)
        if row and row["tick"] < tick
    ]
    files.write_whole(path, "".join(line.decode("ascii") for line, _ in kept))
    return {tick for _, tick in kept}


def _no_needs(row: Mapping[str, Any]) -> bool:
    return True


_NEEDS: dict[
    str, Callable[[Mapping[str, Any]], bool]
] = {  # of rows that result.json and tables are made of
    "metrics.jsonl": lambda row: (
        isinstance(row["step"], int) and all(isinstance(v, int | float) for v in row.values())
    ),
    "evaluations.jsonl": lambda row: (
        all(isinstance(row[key], int | float) for key in ("step", "accuracy", "generated_tokens"))
        and all(isinstance(v, int | float) for v in row["by_family"].values())
    ),
    "templates.jsonl": lambda row: (
        row.get("cover_rank") is None
        or (
            isinstance(row["dev_score"], int | float)
            and isinstance(row["text"], str)
            and isinstance(row["epoch"], int)
        )
    ),
}


def _row(line: bytes, needs: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
    """The row of a line; None if it is not whole, or is none."""
    try:
        row = json.loads(line.decode("ascii"))
        return row if line.endswith(b"\n") and type(row["tick"]) is int and needs(row) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _api_metrics(before: RunState, after: RunState) -> dict[str, float]:
    """What a prompt phase met with at the endpoint."""
    then, now = (state.ledger.costs.get("gepa_reflect", {}) for state in (before, after))
    return {f"gepa/{name}": now.get(name, 0) - then.get(name, 0) for name in api.STATS}


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
        "tokens": len(r.completion.token_ids),
        "stopped": r.completion.stopped,
    }


def _template_rows(result: SearchResult, epoch: int) -> list[dict[str, Any]]:
    """A row per candidate (its place in the cover, dev scores by question) and per rejected
    proposal.
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
        }
        rows.append({**row, "dev_score": mean, "cover_rank": rank, "dev": dev})
    return rows + [
        {"epoch": epoch, **event} for event in result.events if event["outcome"] != "accepted"
    ]
