"""The arms of the suites: settings over a config, and comparisons."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

DIALS = ("1e-2", "1e-3", "1e-4", "1e-5")  # world.p_chain_plain
HEADLINE = "1e-5"  # the dial of the suites that do not vary it
CONFIG = "configs/science.py"
NUM_BASES = 2  # base models per dial; a seed uses the one of world.seed = seed mod 2
TEACHER_PORT = 18765

MASK = ("distill.eps_low=0.99",)  # the paper's
NO_MASK = ("distill.eps_low=1",)
OFF = ("distill.mode=off", "optim.row_tokens=128")
# benchmarks/science/teacher.py reflects
TAUGHT = (
    "gepa.reflector=api",
    "api.model=scripted",
    "api.key_env=()",
    f"api.base_url=http://127.0.0.1:{TEACHER_PORT}/v1",
)


@dataclass(frozen=True)
class Arm:
    """Settings over the suite's config. `seeds` limits the suite's seeds unless it is 0."""

    name: str
    what: str
    settings: tuple[str, ...] = ()
    seeds: int = 0
    claim: str = ""  # the paper's figures if the arm is one of its ablations: without → with
    against: str = ""  # the arm that a switch of the recipe is compared with
    # By that claim, the arm is better (1) or worse (-1) than P²O as released; 0: no claim.
    expected: int = 0


@dataclass(frozen=True)
class Run:
    """An arm at a dial with a seed.

    The seed fixes the order of questions and all sampling. Modulo NUM_BASES, it also fixes
    questions and base model.
    """

    arm: Arm
    dial: str
    seed: int
    config: str = CONFIG

    @property
    def overrides(self) -> tuple[str, ...]:
        """Sorted `key=value` of each setting over the config.

        They identify the run in the results.
        """
        fixed = (
            f"world.p_chain_plain={self.dial}",
            f"world.seed={self.seed % NUM_BASES}",
            f"train.seed={self.seed}",
        )
        return tuple(sorted((*self.arm.settings, *fixed)))


GRPO = Arm("grpo", "GRPO, groups of 8", ("gepa.enabled=false",))
GRPO_DOUBLE = Arm(
    "grpo-16", "GRPO, groups of 16", ("gepa.enabled=false", "rollout.group_size=16"), seeds=3
)
GRPO_EXTRA = Arm(
    "grpo-extra",
    "GRPO, extra plain groups",
    ("gepa.enabled=false", "mining.extra_plain_groups=1"),
)
DAPO = Arm(
    "dapo",
    "GRPO with dynamic sampling (DAPO)",
    ("gepa.enabled=false", "rollout.dynamic_sampling=true"),
    seeds=3,
)
FAITHFUL = Arm("faithful", "P²O, as released", ("preset=faithful",))
RECOMMENDED = Arm("recommended", "P²O, recommended")
EVERY_EPOCH = Arm(
    "every-epoch",
    "P²O, recommended, a whole search in every epoch",
    ("gepa.schedule=every_epoch", "gepa.carry_over=0"),
    against="recommended",
)


def _faithful(name: str, what: str, *settings: str, claim: str = "", expected: int = 0) -> Arm:
    return Arm(
        name,
        what,
        ("preset=faithful", *settings),
        seeds=3,
        claim=claim,
        expected=expected,
        against="faithful",
    )


def _recommended(name: str, what: str, *settings: str) -> Arm:
    return Arm(name, what, settings, seeds=3, against="recommended")


PAPER = (
    FAITHFUL,
    GRPO,
    GRPO_DOUBLE,
    DAPO,
    _faithful(
        "no-distillation",
        "trained on the templated prompt",
        *OFF,
        claim="65.2 → 55.6",
        expected=-1,
    ),
    _faithful(
        "same-template",
        "one template per group",
        "assign.same_template_in_group=true",
        claim="65.2 → 64.2",
        expected=-1,
    ),
    _faithful(
        "one-reflection",
        "one round of reflection in place of GEPA",
        "gepa.max_iterations=1",
        "gepa.parents=16",
        "gepa.fill_width=true",
        claim="64.2 → 50.4",
        expected=-1,
    ),
    _faithful(
        "threshold-1",
        "hard: at most 1 success",
        "mining.max_successes=1",
        claim="62.1 (0) → 64.2 (≤ 1)",
    ),
    _faithful(
        "threshold-3",
        "hard: at most 3 successes",
        "mining.max_successes=3",
        claim="62.1 (0) → 64.1 (≤ 3)",
    ),
    _faithful(
        "reflector-policy",
        "the current policy reflects",
        "gepa.reflector=policy",
        claim="loses diversity late in training",
    ),
    _faithful(
        "reflector-teacher",
        "a scripted teacher reflects",
        *TAUGHT,
        claim="62.4 → 65.2 (DeepScaler), 64.2 → 57.9 (DeepMath)",
    ),
    _faithful(
        "template-at-test", "asked under the best template at test time", "eval.template=best"
    ),
    _faithful(
        "prompts-first",
        "GEPA once on all questions, then training",
        "gepa.schedule=first",
        "gepa.max_metric_calls=1500",
    ),
    _faithful(
        "gepa-only",
        "GEPA alone, asked under its best template",
        "gepa.schedule=first",
        "gepa.max_metric_calls=5000",
        "train.epochs=0",
        "eval.template=best",
    ),
)

RECIPE = (
    FAITHFUL,
    _faithful(
        "f+plain-1",
        "+ 1 plain rollout per group, judged on it",
        "assign.plain_rollouts=1",
        "mining.judge_on=plain",
    ),
    _faithful(
        "f+plain-2",
        "+ 2 plain rollouts per group, judged on them",
        "assign.plain_rollouts=2",
        "mining.judge_on=plain",
    ),
    _faithful(
        "f+plain-4",
        "+ 4 plain rollouts per group, judged on them",
        "assign.plain_rollouts=4",
        "mining.judge_on=plain",
    ),
    _faithful(
        "f+fronts",
        "+ unsolved dev questions do not choose parents",
        "gepa.count_unsolved_fronts=false",
    ),
    _faithful(
        "f+width",
        "+ proposals always fill the width",
        "gepa.fill_width=true",
        "gepa.max_iterations=100",
        "gepa.patience=8",
    ),
    _faithful(
        "f+filters",
        "+ replies filtered, leaks rejected",
        "gepa.filter_replies=true",
        "gepa.leak_guard=true",
    ),
    RECOMMENDED,
    EVERY_EPOCH,
    _recommended("r+calls-150", "GEPA with half the budget", "gepa.max_metric_calls=150"),
    _recommended("r+calls-600", "GEPA with twice the budget", "gepa.max_metric_calls=600"),
    _recommended("r+carry-over-8", "up to 8 templates carried over", "gepa.carry_over=8"),
    _recommended("r+minibatches-3", "ties on further minibatches", "gepa.max_minibatches=3"),
    _recommended(
        "r+one-reflection",
        "one round of reflection in place of GEPA",
        "gepa.max_iterations=1",
        "gepa.parents=16",
    ),
    _recommended("r+teacher", "a scripted teacher reflects", *TAUGHT),
    _recommended(
        "r+hints",
        "hints of the right strategy in place of GEPA",
        "gepa.reflector=hint",
        "data.hint_field=hint",
    ),
    _recommended("r+plain-4", "4 plain rollouts per group", "assign.plain_rollouts=4"),
    _recommended("r+near-hard", "hard: at most 1 success", "mining.max_successes=1"),
    _recommended("r+skip", "hopeless groups are not asked", "mining.skip_below=0.5"),
    _recommended("r+kept", "failed templated rollouts kept", "distill.drop_failed_templated=false"),
    _recommended("r+mask", "the paper's ratio mask", *MASK),
    _recommended("r+soft-mask", "the paper's ratio mask, soft", *MASK, "distill.clip=soft"),
    _recommended("r+truncated", "truncated importance weights", "distill.mode=truncated"),
    _recommended(
        "r+importance", "importance ratios (no distillation bias)", "distill.mode=importance"
    ),
    _recommended("r+self", "+ self-distillation", "loss.self_distill_coef=1"),
    _recommended("r+maxrl", "MaxRL advantages", "adv.kind=maxrl"),
    _recommended("r+dppo", "DPPO's mask", "loss.ratio=dppo"),
    _recommended(
        "r+int8-mask",
        "int8 cache, importance mask (IcePop)",
        "rollout.cache_dtype=int8",
        "train.rollout_is=token_mask",
    ),
    _recommended("r+kl", "KL to the base model (k3, 0.01)", "loss.kl=k3", "loss.kl_coef=0.01"),
    _recommended("r+1-update", "1 update a step in place of 4", "optim.minibatch_questions=16"),
    _recommended("r+8-updates", "8 updates a step in place of 4", "optim.minibatch_questions=2"),
    _recommended("r+off", "no context distillation", *OFF),
)
DIAL = (GRPO, GRPO_DOUBLE, GRPO_EXTRA, DAPO, FAITHFUL, EVERY_EPOCH, RECOMMENDED)
# at 1e-3, where one run of GRPO finds the chain and the next does not
CROSSOVER = (GRPO, GRPO_EXTRA, RECOMMENDED)


def _medium(
    name: str, what: str, *settings: str, against: str = "", expected: int = 0, claim: str = ""
) -> Arm:
    """An arm on the medium world, which `world.size` distinguishes in the rows."""
    return Arm(
        f"medium-{name}",
        what,
        ("world.size=medium", *settings),
        against=f"medium-{against}" if against else "",
        expected=expected,
        claim=claim,
    )


ONE_ROUND = ("gepa.max_iterations=1", "gepa.parents=16", "gepa.fill_width=true")
AS_RELEASED = "preset=faithful"
PAPER_MEDIUM = (
    _medium("grpo", "GRPO, groups of 8", "gepa.enabled=false", against="recommended", expected=-1),
    _medium("recommended", "P²O, recommended"),
    _medium(
        "mask", "Recommended, with the mask (`distill.eps_low=.99`)", *MASK, against="recommended"
    ),
    _medium(
        "one-reflection",
        "Recommended, one round of reflection in place of GEPA",
        *ONE_ROUND,
        against="recommended",
        expected=-1,
        claim="64.2 → 50.4",
    ),
    _medium(
        "off",
        "Recommended, trained on the templated prompt",
        *OFF,
        against="recommended",
        expected=-1,
        claim="65.2 → 55.6",
    ),
    _medium("faithful", "P²O, as released", AS_RELEASED, against="recommended"),
    _medium(
        "f-no-mask",
        "Released, without the mask (`distill.eps_low=1`)",
        AS_RELEASED,
        *NO_MASK,
        against="faithful",
    ),
    _medium(
        "f-one-reflection",
        "Released, one round of reflection in place of GEPA",
        AS_RELEASED,
        *ONE_ROUND,
        against="faithful",
        expected=-1,
        claim="64.2 → 50.4",
    ),
    _medium(
        "f-off",
        "Released, trained on the templated prompt",
        AS_RELEASED,
        *OFF,
        against="faithful",
        expected=-1,
        claim="65.2 → 55.6",
    ),
)


# not in configs/science.py: `flops` of a row includes evaluation, and older rows are repeated
ALL_SETS = ("data.eval_path=world,longer=world:longer,wording=world:wording",)
ELSEWHERE = (
    Arm("elsewhere-grpo", GRPO.what, (*GRPO.settings, *ALL_SETS)),
    Arm("elsewhere-recommended", RECOMMENDED.what, ALL_SETS, against="elsewhere-grpo"),
)


class Suite(NamedTuple):
    """Arms at dials, and the config that their settings are over."""

    arms: tuple[Arm, ...]
    dials: tuple[str, ...]
    config: str = CONFIG


SUITES = {
    "dial": Suite(DIAL, DIALS),
    "crossover": Suite(CROSSOVER, ("1e-3",)),
    "paper": Suite(PAPER, (HEADLINE,)),
    "recipe": Suite(RECIPE, (HEADLINE,)),
    "elsewhere": Suite(ELSEWHERE, ("1e-3", "1e-5")),
    "paper-medium": Suite(PAPER_MEDIUM, (HEADLINE,), "configs/science_medium.py"),
}


def runs(name: str, seeds: int) -> Iterator[Run]:
    """All runs of a suite. The first seed of every arm comes before the second of any."""
    suite = SUITES[name]
    for seed in range(seeds):
        for dial in reversed(suite.dials):
            yield from (
                Run(arm, dial, seed, suite.config)
                for arm in suite.arms
                if seed < (arm.seeds or seeds)
            )
