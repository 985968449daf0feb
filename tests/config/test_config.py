"""Config files, presets, overrides, arms, flags and rules: all problems are reported at once, by
key, value and rule.
"""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import pytest

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, loading, names, ranges, rules, setting

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.py"))
SMOKE = str(Path(__file__).parents[2] / "configs" / "smoke.py")


def problems_of(run, *args) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        run(*args)
    return list(raised.value.problems)


def changed(**changes) -> Config:
    """The resolved defaults with `section__field=value`."""
    cfg = config.resolve(Config())
    for key, value in changes.items():
        section, name = key.split("__")
        cfg = dataclasses.replace(
            cfg, **{section: dataclasses.replace(getattr(cfg, section), **{name: value})}
        )
    return cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load_and_keep_the_rules(path):
    values = loading.load_config_dict(str(path))
    cfg = config.resolve(loading.from_config_dict(values))
    devices = (1,) if path.stem == "laptop" else (1, 8)  # a laptop's CPU is one
    assert [rules.problems(cfg, count) for count in devices] == [[]] * len(devices)
    for arm in loading.arms(values).values():
        assert rules.problems(config.resolve(arm), 1) == []
    source = path.read_text(encoding="utf-8")
    assert (
        source.count(f"--config configs/{path.relative_to(FOLDER).as_posix()}") == 1
        and source.count("\n") <= 60
    )
    assert "Hardware" in source or "hardware" in source


def test_the_paper_s_runs_differ_from_the_main_one_in_what_they_say():
    def settings_of(name):
        values = loading.to_config_dict(
            loading.load(str(FOLDER / "paper" / f"{name}.py"))
        ).to_dict()
        return {
            f"{section}.{key}": v
            for section, part in values.items()
            if isinstance(part, dict)
            for key, v in part.items()
        }

    main = settings_of("deepscaler_self")
    changes = {
        "deepmath_self": {
            "data.path": "data/deepmath/train_5k.jsonl",
            "data.eval_path": "data/deepmath/test.jsonl",
        },
        "grpo_6": {"gepa.enabled": False},
        "grpo_12": {"gepa.enabled": False, "rollout.group_size": 12},
        "ablations/plain_ratio": {"distill.mode": "plain"},
    }
    for name, expected in changes.items():
        changed = settings_of(name)
        assert {k: v for k, v in changed.items() if v != main[k]} == expected
    teacher = settings_of("deepscaler_teacher")
    assert {k for k, v in teacher.items() if v != main[k]} == {
        "gepa.reflector",
        "api.base_url",
        "api.model",
        "api.key_env",
    }
    both = settings_of("deepmath_teacher")
    assert {k for k, v in both.items() if v != teacher[k]} == {"data.path", "data.eval_path"}


def test_the_defaults_are_the_paper_s_and_keep_the_rules():
    cfg = config.resolve(Config(preset="faithful"))
    for num_devices in (1, 8):
        assert rules.problems(cfg, num_devices) == []
    assert (
        cfg.rollout.questions,
        cfg.rollout.group_size,
        cfg.rollout.temperature,
        cfg.optim.lr,
    ) == (128, 6, 0.6, 1e-6)
    assert (cfg.distill.eps_low, cfg.distill.eps_high, cfg.loss.dual_clip, cfg.gepa.budget) == (
        0.99,
        9.0,
        3.0,
        "heavy_4",
    )


def test_config_dict_and_back():
    assert loading.from_config_dict(loading.to_config_dict(Config())) == Config()
    values = loading.to_config_dict(Config())
    values.rollout.prompt_buckets = [16, 32]
    values.optim.lr = 1
    cfg = loading.from_config_dict(values)
    assert cfg.rollout.prompt_buckets == (16, 32)
    assert cfg.optim.lr == 1.0 and type(cfg.optim.lr) is float


def test_a_key_misspelt_in_a_file_fails_where_it_is_written(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from p2o_jax.config import Config\nfrom p2o_jax.config.loading import to_config_dict\ndef"
        " get_config():\n    c = to_config_dict(Config())\n    c.rollout.tempreture = 1.0\n   "
        " return c\n"
    )
    (line,) = problems_of(loading.load, str(path))
    assert line.startswith(f"{path}:5:") and "tempreture" in line


def test_a_file_that_is_none_is_reported(tmp_path):
    assert problems_of(loading.load, "nowhere.py") == ["--config=nowhere.py: no such file"]
    path = tmp_path / "mine.py"
    path.write_text("import nothing_of_this_name\n")
    assert problems_of(loading.load, str(path)) == [
        f"{path}:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    ]
    path.write_text("def get_config():\n    return 3\n")
    assert "must return a ConfigDict" in problems_of(loading.load, str(path))[0]
    path.write_text("x = 1\n")
    assert "get_config" in problems_of(loading.load, str(path))[0]
    path.write_text("def f(:\n")
    assert "SyntaxError" in problems_of(loading.load, str(path))[0]


OVERRIDES = [
    ("optim.lr", "3e-5", 3e-5),
    ("optim.lr", "1", 1.0),
    ("rollout.group_size", "4", 4),
    ("gepa.enabled", "false", False),
    ("gepa.enabled", "True", True),
    ("gepa.charge_all", "false", False),
    ("gepa.temperature", "0.5", 0.5),
    ("gepa.temperature", "none", None),
    ("distill.mode", "importance", "importance"),
    ("mining.judge_on", "plain", "plain"),
    ("data.path", "a b.jsonl", "a b.jsonl"),
    ("chat.system_prompt", "1", "1"),
    ("rollout.prompt_buckets", "(16, 32)", (16, 32)),
    ("rollout.prompt_buckets", "[16]", (16,)),
    ("rollout.prompt_buckets", "16", (16,)),
    ("rollout.prompt_buckets", "16,32", (16, 32)),
    ("preset", "faithful", "faithful"),
    ("gepa.enabled", "no", False),
    ("gepa.charge_all", "Yes", True),
    ("mining.judge_on", "none", None),
    ("train.max_generated_tokens", "1e6", 1_000_000),
    ("train.max_generated_tokens", "2_000", 2000),
    ("rollout.prompt_buckets", "1e2, 2e2", (100, 200)),
    ("lora.targets", "q,k", ("q", "k")),
    ("lora.targets", "(q, k)", ("q", "k")),
    ("lora.targets", "['q', \"k\"]", ("q", "k")),
    ("lora.targets", "q", ("q",)),
    ("reward.env", "", ()),
    ("api.key_env", "A_KEY, B_KEY", ("A_KEY", "B_KEY")),
    ("data.path", "none", "none"),
    ("data.path", "\udcff.jsonl", "\udcff.jsonl"),
]


@pytest.mark.parametrize(
    ("key", "text", "value"), OVERRIDES, ids=[f"{k}={t}" for k, t, _ in OVERRIDES]
)
def test_overrides_are_parsed_as_the_field_s_type(key, text, value):
    value_loaded = loading.load(SMOKE, [(key, text)])
    for name in key.split("."):
        value_loaded = getattr(value_loaded, name)
    assert value_loaded == value and type(value_loaded) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optim.lr", "fast", "config.optim.lr=fast: expected float"),
        ("optim.lr", "true", "config.optim.lr=true: expected float"),
        ("rollout.group_size", "4.0", "config.rollout.group_size=4.0: expected int"),
        ("rollout.group_size", "1.5", "config.rollout.group_size=1.5: expected int"),
        ("rollout.group_size", "15e-1", "config.rollout.group_size=15e-1: expected int"),
        ("rollout.group_size", "true", "config.rollout.group_size=true: expected int"),
        ("rollout.group_size", "none", "config.rollout.group_size=none: expected int"),
        ("rollout.group_size", "1e999", "config.rollout.group_size=1e999: expected int"),
        ("gepa.patience", "often", "config.gepa.patience=often: expected int or none"),
        ("mining.judge_on", "some", "config.mining.judge_on=some: expected one of all, plain or n"),
        ("gepa.enabled", "1", "config.gepa.enabled=1: expected bool"),
        ("gepa.enabled", "maybe", "config.gepa.enabled=maybe: expected bool"),
        (
            "distill.mode",
            "none",
            (
                "config.distill.mode=none: expected one of ratio_mask, truncated, plain,"
                " importance, off"
            ),
        ),
        (
            "rollout.prompt_buckets",
            "(16, 'a')",
            "config.rollout.prompt_buckets=(16, 'a'): expected tuple",
        ),
        (
            "rollout.bank_tokens",
            "9",
            (
                "config.rollout.bank_tokens: no such key (it is now"
                " config.rollout.prompt_cache_tokens)"
            ),
        ),
        (
            "rollout.tempreture",
            "1",
            "config.rollout.tempreture: no such key (did you mean config.rollout.temperature?)",
        ),
        ("temperature", "1", "config.temperature: no such key (did you mean config."),
        ("rollout", "1", "config.rollout: no such key"),
        ("rollout.temperature.x", "1", "config.rollout.temperature.x: no such key"),
        ("optim.lr", "", "config.optim.lr=: expected float"),
    ],
)
def test_wrong_overrides_are_reported(key, text, message):
    (line,) = problems_of(loading.load, SMOKE, [(key, text)])
    assert line.startswith(message)


def test_all_problems_are_told_at_once():
    lines = problems_of(
        loading.load,
        SMOKE,
        [("a.b", "1"), ("optim.lr", "x"), ("rollout.slots", "8"), ("distil.mode", "off")],
    )
    assert [line.split(":")[0].split("=")[0] for line in lines] == [
        "config.a.b",
        "config.optim.lr",
        "config.distil.mode",
    ]
    values = loading.to_config_dict(Config())
    with values.unlocked(), values.ignore_type():
        values.rollout.slots = "many"
        values.optim.lr = "high"
        values.nothing = 3
    lines = problems_of(loading.from_config_dict, values)
    assert len(lines) == 3
    assert (
        "config.rollout.slots='many': expected int" in lines
        and "config.nothing: no such key" in lines[0]
    )


def test_types_ranges_and_rules_are_reported_together():
    """A wrong choice hides neither the range nor the rules of other settings."""
    wrong = [
        ("loss.ratio", "tokens"),
        ("rollout.questions", "many"),
        ("optim.lrr", "1"),
        ("rollout.top_p", "1.5"),
        ("optim.minibatch_questions", "48"),
        ("gepa.budget", "full_evals"),
        ("mesh.data", "x"),
    ]
    assert problems_of(loading.load, SMOKE, wrong) == [
        "config.loss.ratio=tokens: expected one of token, sequence, cispo, dppo",
        "config.rollout.questions=many: expected int",
        "config.optim.lrr: no such key (did you mean config.optim.lr?)",
        "config.mesh.data=x: expected int",
        "config.rollout.top_p=1.5 must lie in (0, 1]",
        "config.gepa.budget=full_evals needs config.gepa.max_full_evals",
    ], "the rule on minibatch_questions needs rollout.questions, which is not known"
    values = loading.to_config_dict(Config())
    with values.unlocked(), values.ignore_type():
        values.loss.ratio = "tokens"
        values.optim.b1 = "high"
        values.rollout.prompt_buckets = [16, "x"]
        values.mesh = 3
        values.loss.nothing = 1
        values.gepa.min_hard = 0
        values.train.epochs = 0
    assert problems_of(loading.from_config_dict, values) == [
        "config.loss.nothing: no such key (did you mean config.loss.overlong?)",
        "config.mesh=3: expected the settings of the section mesh",
        "config.rollout.prompt_buckets=(16, 'x'): expected tuple",
        "config.loss.ratio='tokens': expected one of token, sequence, cispo, dppo",
        "config.optim.b1='high': expected float",
        "config.gepa.min_hard=0 must be at least 1",
        "config.train.epochs=0 needs config.gepa.enabled and config.gepa.schedule=first: there"
        " would be nothing to do",
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("rollout.num_generations", "rollout.group_size"),
        ("rollout.n", "rollout.group_size"),
        ("max_completion_length", "rollout.max_new_tokens"),
        ("rollout.max_tokens", "rollout.max_new_tokens"),
        ("loss.beta", "loss.kl_coef"),
        ("kl_coef", "loss.kl_coef"),
        ("loss.epsilon", "loss.clip_low"),
        ("clip_ratio_high", "loss.clip_high"),
        ("model.group_size", "rollout.group_size"),
        ("optim.wieght_decay", "optim.weight_decay"),
        ("gepa.tempurature", "gepa.temperature"),
    ],
)
def test_names_of_other_libraries_are_understood(key, meant):
    (line,) = problems_of(loading.load, SMOKE, [(key, "1")])
    assert line == f"config.{key}: no such key (did you mean config.{meant}?)"


def test_aliases_name_settings():
    known = setting.settings(Config)
    assert set(names.ALIASES.values()) <= set(known)
    assert len(names.ALIASES) == sum(len(v.split()) for v in names._ALIASES.values())


RULES = [
    (
        {"optim__minibatch_questions": 48},
        "config.optim.minibatch_questions=48 must divide config.rollout.questions=128",
    ),
    (
        {"rollout__group_size": 0, "assign__plain_rollouts": 0, "mining__judge_on": "all"},
        "config.rollout.group_size=0 must be at least 1",
    ),
    (
        {"rollout__temperature": 0.0},
        "config.rollout.temperature=0.0 must lie in [0.01, 100]: below, sampling is greedy",
    ),
    ({"rollout__top_p": 1.5}, "config.rollout.top_p=1.5 must lie in (0, 1]"),
    (
        {"mesh__data": 3},
        "config.mesh (data, fsdp, tensor)=(3, -1, 1) must multiply to the number of devices, 1",
    ),
    (
        {"mesh__data": -1},
        (
            "config.mesh (data, fsdp, tensor)=(-1, -1, 1): sizes must be positive, and at most one"
            " of them -1"
        ),
    ),
    ({"data__max_prompt_tokens": 40000}, "must reach config.data.max_prompt_tokens=40000"),
    ({"optim__row_tokens": 100}, "config.optim.row_tokens=100 must hold the longest prompt"),
    (
        {"assign__plain_rollouts": 7},
        "config.assign.plain_rollouts=7 must lie in 0..config.rollout.group_size=6",
    ),
    (
        {"assign__plain_rollouts": 0},
        "config.mining.judge_on=plain needs config.assign.plain_rollouts of at least 1",
    ),
    ({"gepa__budget": "calls"}, "config.gepa.budget=calls needs config.gepa.max_metric_calls"),
    (
        {"gepa__budget": "full_evals"},
        "config.gepa.budget=full_evals needs config.gepa.max_full_evals",
    ),
    ({"gepa__dev_size": 0.7}, "config.gepa.dev_size=0.7 must be a count, or a fraction up to 0.5"),
    (
        {"train__epochs": 0},
        "config.train.epochs=0 needs config.gepa.enabled and config.gepa.schedule=first",
    ),
    (
        {"optim__schedule": "cosine", "mining__extra_plain_groups": 1},
        "config.mining.extra_plain_groups=1 makes their number unknown",
    ),
    (
        {"optim__schedule": "cosine", "mining__skip_below": 0.1},
        "config.mining.skip_below=0.1 makes their number unknown",
    ),
    ({"mining__skip_below": 1.0}, "config.mining.skip_below=1.0 must lie in [0, 1)"),
    (
        {"gepa__schedule": "adaptive", "gepa__carry_over": 0},
        "config.gepa.schedule=adaptive needs config.gepa.carry_over",
    ),
    (
        {"gepa__rollouts_per_eval": 2},
        "config.gepa.rollouts_per_eval=2 with config.gepa.temperature=0 would pay",
    ),
    (
        {"train__epochs": -1, "gepa__schedule": "first"},
        "config.train.epochs=-1 must not be negative",
    ),
    ({"mining__max_successes": -1}, "config.mining.max_successes=-1 must not be negative"),
    (
        {"data__prompt_template": "Solve it."},
        "config.data.prompt_template='Solve it.' must hold {question} once",
    ),
    ({"data__prompt_template": "{question} {question}"}, "must hold {question} once"),
    ({"data__question_field": ""}, "config.data.question_field must name a field"),
    (
        {"data__answer_field": ""},
        "config.data.answer_field='' (no reference answers) needs config.reward.fn",
    ),
    (
        {"reward__success_above": 1.0},
        "config.reward.success_above=1.0 must lie in [0, 1): no score is above 1",
    ),
    (
        {"reward__fn": "my.module"},
        "config.reward.fn=my.module: expected FILE.py:function, package.module:function",
    ),
    (
        {"reward__fn": "a:b('c')"},
        "config.reward.fn=a:b('c'): expected FILE.py:function, package.module:function",
    ),
    ({"reward__env": ("MY_KEY",)}, "config.reward.env needs a function in config.reward.fn"),
    (
        {"reward__fn": "dir/a b.py:f", "reward__env": ("MY_KEY=1",)},
        "config.reward.env: expected names of environment variables, not values",
    ),
    (
        {"mining__extra_plain_groups": -1},
        "config.mining.extra_plain_groups=-1 must not be negative",
    ),
    (
        {
            "eval__template": "best",
            "rollout__prompt_buckets": (512, 4096),
            "gepa__reflect_prompt_tokens": 4000,
        },
        "config.eval.template=best needs config.rollout.prompt_buckets to reach",
    ),
    (
        {"gepa__reflector": "api", "api__base_url": "http://localhost:8000/v1"},
        "config.api.model: config.gepa.reflector=api needs",
    ),
    ({"train__watchdog_s": -1.0}, "config.train.watchdog_s=-1.0 must be 0, or at least 0.001"),
    ({"checkpoint__keep_every": -1}, "config.checkpoint.keep_every=-1 must not be negative"),
    ({"checkpoint__grace_s": float("inf")}, "config.checkpoint.grace_s=inf must be finite"),
    # 100 hard questions: 300 dev questions are too many, so 50, and 2 x 3 for a proposal and its
    # parent
    (
        {"gepa__budget": "calls", "gepa__max_metric_calls": 55},
        "config.gepa.max_metric_calls=55 pays for no proposal",
    ),
    (
        {"gepa__reflect_prompt_tokens": 32768},
        "config.gepa.reflect_prompt_tokens=32768 must be less than",
    ),
    (
        {"gepa__dev_size": 20.5},
        "config.gepa.dev_size=20.5 must be a count, or a fraction up to 0.5",
    ),
    (
        {"gepa__acceptance": "margin", "gepa__acceptance_margin": 3.5},
        (
            "config.gepa.acceptance_margin=3.5 must be at most config.gepa.minibatch=3: no child"
            " could be accepted"
        ),
    ),
    ({"world__kv_heads": 3}, "config.world.heads=4 must be a multiple of config.world.kv_heads=3"),
    ({"world__head_dim": 31}, "config.world.head_dim=31 must be even"),
    ({"rollout__prompt_buckets": ()}, "config.rollout.prompt_buckets=() must name a length"),
    (
        {"rollout__prompt_buckets": (0, 32768)},
        "config.rollout.prompt_buckets=(0, 32768): each must be at least 1",
    ),
    ({"mesh__data": 0}, "config.mesh.data=0 must be -1, or at least 1"),
    ({"gepa__reflector": "hint"}, "config.gepa.reflector=hint needs config.data.hint_field"),
    (
        {"data__hint_field": "hint"},
        "config.data.hint_field=hint needs config.gepa.reflector=hint: nothing else reads hints",
    ),
    (
        {"gepa__reflector": "hint", "data__hint_field": "hint", "gepa__seed_templates": "f"},
        "config.gepa.seed_templates=f needs templates that evolve; config.gepa.reflector=hint",
    ),
    (
        {
            "gepa__reflector": "hint",
            "data__hint_field": "hint",
            "gepa__schedule": "first",
            "train__epochs": 0,
        },
        "config.train.epochs=0 needs config.gepa.enabled and config.gepa.schedule=first",
    ),
    (
        {"adv__kind": "maxrl", "loss__overlong": "penalty"},
        "config.adv.kind=maxrl needs rewards that are not negative; config.loss.overlong=penalty",
    ),
    (
        {"loss__ratio": "dppo", "loss__clip_high": 1.0},
        "config.loss.clip_low=0.2 and clip_high=1.0 must be less than 1 with",
    ),
    (
        {"train__rollout_is": "token_mask", "train__rollout_is_cap": 1.0},
        "config.train.rollout_is_cap=1.0 must be more than 1 with",
    ),
    (
        {"loss__self_distill_coef": 0.1, "distill__mode": "off"},
        "config.loss.self_distill_coef=0.1 needs templated rollouts that are trained on the plain",
    ),
    (
        {"loss__self_distill_coef": 0.1, "gepa__enabled": False},
        "config.distill.mode=ratio_mask, config.gepa.enabled=false",
    ),
    ({"loss__self_distill_coef": -0.1}, "config.loss.self_distill_coef=-0.1 must not be negative"),
    ({"loss__dual_clip": 0.5}, "config.loss.dual_clip=0.5 must be more than 1: at a ratio of 1"),
    ({"loss__clip_low": -0.1}, "config.loss.clip_low=-0.1 must lie in [1e-06, 1]"),
    ({"loss__kl_coef": -1.0}, "config.loss.kl_coef=-1.0 must not be negative"),
    ({"loss__overlong_penalty": -1.0}, "config.loss.overlong_penalty=-1.0 must not be negative"),
    (
        {"train__seed": 10**20},
        (
            "config.train.seed=100000000000000000000 must be at most 4,294,967,295: JAX makes keys"
            " of 32 bits"
        ),
    ),
    ({"train__seed": -1}, "config.train.seed=-1 must not be negative"),
    ({"rollout__temperature": 1e-38}, "config.rollout.temperature=1e-38 must lie in [0.01, 100]"),
    ({"gepa__temperature": 1e-38}, "config.gepa.temperature=1e-38 must be 0, or in [0.01, 100]"),
    ({"eval__max_questions": -5}, "config.eval.max_questions=-5 must not be negative"),
    (
        {"optim__b2": 1.0},
        "config.optim.b2=1.0 must lie in [0, 0.99999]: its bias correction divides by 1 - beta",
    ),
    ({"gepa__max_iterations": -1}, "config.gepa.max_iterations=-1 must not be negative"),
    ({"loss__kl_coef": float("nan")}, "config.loss.kl_coef=nan must be finite"),
]


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[message[:50] for _, message in RULES])
def test_each_broken_rule_is_reported(changes, message):
    (line,) = rules.problems(changed(**changes), 1)
    assert message in line


def of_section(name: str) -> list[dataclasses.Field]:
    return list(dataclasses.fields(typing.get_type_hints(Config)[name]))


SECTIONS = [
    name for name, hint in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(hint)
]
NUMBERS = [
    (section, field)
    for section in SECTIONS
    for field in of_section(section)
    if setting.range_of(field)
]


def is_number(hint: Any) -> bool:
    return hint in (int, float) or any(is_number(part) for part in typing.get_args(hint))


def test_every_number_has_a_range():
    """Whatever is an int or a float, in a list or optional, too; what is none has no range."""
    for section in SECTIONS:
        hints = typing.get_type_hints(typing.get_type_hints(Config)[section])
        for field in of_section(section):
            assert (setting.range_of(field) is not None) == is_number(hints[field.name]), (
                f"config.{section}.{field.name}"
            )
    assert len(NUMBERS) > 100
    assert not any(is_number(hint) for hint in typing.get_type_hints(Config).values()), (
        "a number outside of the sections"
    )


def test_every_setting_has_a_description():
    for known in setting.settings(Config).values():
        assert known.doc.lstrip("▲ ")[0].isupper(), known.key
        assert known.doc.endswith((".", "}.")) and len(known.doc) > 10, known.key
    for name, cls in setting.sections(Config).items():
        assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), name


def test_what_may_change_when_a_run_is_resumed():
    """Beside each setting; and what an earlier version had in a section that may change."""
    may = {key for key in setting.settings(Config) if setting.may_change(Config, key)}
    assert may >= {"mesh.fsdp", "api.model", "eval.rollouts", "rollout.slots", "train.epochs"}
    assert not may & {"preset", "arms", "optim.lr", "model.path", "checkpoint.path", "train.seed"}
    assert setting.may_change(Config, "eval.of_an_earlier_version")
    assert not setting.may_change(Config, "optim.of_an_earlier_version")
    assert not setting.may_change(Config, "eval") and not setting.may_change(Config, "nothing.x")


def put(section: str, field: dataclasses.Field, value: float) -> list[str]:
    """The lines about the field where it has this value, or where a list has it behind others."""
    hint = typing.get_type_hints(typing.get_type_hints(Config)[section])[field.name]
    if typing.get_origin(hint) is tuple:
        value = (*field.default, value)
    lines = rules.range_problems(changed(**{f"{section}__{field.name}": value}))
    assert all(line.startswith(f"config.{section}.{field.name}=") for line in lines)
    return lines


@pytest.mark.parametrize(
    ("section", "field"), NUMBERS, ids=[f"{section}.{field.name}" for section, field in NUMBERS]
)
def test_the_ends_of_every_range(section, field):
    """An end is accepted where it belongs to the range, and refused where not; so is what lies
    just outside, and what is no number.
    """
    within = setting.range_of(field)
    whole = int in (
        hint := typing.get_type_hints(typing.get_type_hints(Config)[section])[field.name],
        *typing.get_args(hint),
    )
    step = (
        (lambda x, to: x + (1 if to > x else -1))
        if whole
        else (lambda x, to: math.nextafter(float(x), to))
    )
    for end, outside, belongs in (
        (within.low, -math.inf, within.ge),
        (within.high, math.inf, within.le),
    ):
        assert bool(put(section, field, end)) == (belongs is None), end
        assert len(put(section, field, step(end, outside))) == (
            step(end, outside) not in within.also
        )
        assert put(section, field, step(end, -outside)) == [], "just inside"
    assert all(put(section, field, x) == [] for x in within.also)
    for no_number in (math.nan, math.inf, -math.inf):
        (line,) = put(section, field, no_number)
        assert line.endswith("must be finite")


def test_a_range_names_the_end_that_was_passed():
    said = {value: ranges.Range(ge=1, le=2**31 - 1).problem(value) for value in (0, 1, 2**31)}
    assert said == {0: "must be at least 1", 1: "", 2**31: "must be at most 2,147,483,647"}
    said = {
        value: ranges.Range(gt=0, lt=1, also=(2,), why="so").problem(value)
        for value in (0, 0.5, 1.0, 2)
    }
    assert said == {
        0: "must be 2, or in (0, 1): so",
        0.5: "",
        1.0: "must be 2, or in (0, 1): so",
        2: "",
    }
    assert ranges.Range(ge=1, le=2**31 - 1).problem(10**400) == "must be at most 2,147,483,647"
    for ends in (
        {"ge": 0},
        {"le": 0},
        {"ge": 0, "gt": 0, "le": 1},
        {"ge": 1, "le": 0},
        {"ge": 0, "le": math.inf},
    ):
        with pytest.raises(AssertionError):
            ranges.Range(**ends)


def test_unusual_values_get_a_notice_and_no_error():
    assert rules.notices(changed()) == []
    for path in CONFIGS:
        assert rules.notices(config.resolve(loading.load(str(path)))) == [], path
    gspo = changed(
        loss__ratio="sequence", optim__lr=0.1, rollout__temperature=3.0, loss__dual_clip=1.1
    )
    assert rules.problems(gspo, 1) == []
    lines = rules.notices(gspo)
    keys = [
        "config.loss.clip_low=0.2 and clip_high=0.2",
        "config.loss.dual_clip=1.1",
        "config.optim.lr=0.1",
        "config.rollout.temperature=3.0",
    ]
    assert len(lines) == 4 and all(
        line.startswith(f"unusual: {key}") for line, key in zip(lines, keys, strict=True)
    )
    assert (
        rules.notices(changed(loss__ratio="sequence", loss__clip_low=3e-4, loss__clip_high=4e-4))
        == []
    )
    assert len(rules.notices(changed(loss__clip_low=3e-4, optim__lr=0.0))) == 2
    assert rules.notices(changed(optim__lr=0.01, lora__rank=8)) == [], "adapters take larger rates"


def test_a_budget_for_one_proposal_will_do():
    assert rules.problems(changed(gepa__budget="calls", gepa__max_metric_calls=56), 1) == []
    assert (
        len(
            rules.problems(
                changed(
                    gepa__budget="calls",
                    gepa__max_metric_calls=111,
                    gepa__rollouts_per_eval=2,
                    gepa__temperature=1.0,
                ),
                1,
            )
        )
        == 1
    )
    assert (
        rules.problems(
            changed(gepa__budget="calls", gepa__max_metric_calls=26, gepa__dev_size=20.0), 1
        )
        == []
    )
    assert (
        len(
            rules.problems(
                changed(gepa__budget="calls", gepa__max_metric_calls=25, gepa__dev_size=0.2), 1
            )
        )
        == 1
    )


def test_broken_rules_are_told_together():
    cfg = changed(**{k: v for broken, _ in RULES[:2] + RULES[3:4] for k, v in broken.items()})
    assert len(rules.problems(cfg, 1)) >= 3
    on_eight = rules.problems(changed(rollout__slots=12, optim__micro_rows=4), 8)
    assert on_eight == [
        "config.optim.micro_rows=4 must be a multiple of the mesh's data x fsdp = 8",
        "config.rollout.slots=12 must be a multiple of the mesh's data x fsdp = 8",
    ]
    assert rules.problems(changed(rollout__slots=12, optim__micro_rows=4, mesh__tensor=2), 8) == []


def test_a_preset_fills_what_is_not_set_and_only_that():
    keys = set(config.PRESETS["faithful"])
    assert keys == set(config.PRESETS["recommended"])
    optional = {
        f"{section}.{f.name}"
        for section, hint in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(hint)
        for f in dataclasses.fields(hint)
        if f.default is None
    }
    assert keys == optional
    faithful = config.resolve(Config(preset="faithful"))
    assert (faithful.mining.judge_on, faithful.assign.plain_rollouts, faithful.gepa.charge_all) == (
        "all",
        0,
        False,
    )
    recommended = config.resolve(
        Config(
            gepa=config.GepaConfig(leak_guard=False), assign=config.AssignConfig(plain_rollouts=0)
        )
    )
    assert (
        recommended.mining.judge_on,
        recommended.assign.plain_rollouts,
        recommended.gepa.charge_all,
    ) == ("plain", 0, True)
    assert recommended.gepa.leak_guard is False
    assert config.resolve(recommended) == recommended


@pytest.mark.parametrize(
    "arms", ["('a', 'a optim.lr=1')", "('',)", "('seconds',)", "('tokens_a',)", "('a-b',)"]
)
def test_arms_need_names_of_their_own(arms):
    values = loading.load_config_dict(SMOKE, [("arms", arms)])
    with pytest.raises(ConfigError, match="every arm needs a name of its own"):
        loading.arms(values)


def test_rules_that_any_arm_breaks_are_told_before_the_first_is_run():
    from p2o_jax import main

    arms = {
        "a": changed(),
        "b": changed(rollout__top_p=3.0, optim__micro_rows=8),
        "c": changed(checkpoint__path="gs://bucket/run"),
    }
    with pytest.raises(ConfigError) as error:
        main.check_arms(arms)
    assert "config.arms, b: config.rollout.top_p=3.0 must lie in (0, 1]" in error.value.problems
    assert (
        "config.arms, c: config.checkpoint.path must be empty: arms would share one folder"
        in error.value.problems
    )


def test_arms_are_the_config_with_settings_of_their_own():
    values = loading.load_config_dict(
        SMOKE,
        [("arms", "('grpo gepa.enabled=false rollout.group_size=8', 'p2o')"), ("optim.lr", "0.5")],
    )
    arms = loading.arms(values)
    assert list(arms) == ["grpo", "p2o"]
    assert (arms["grpo"].gepa.enabled, arms["grpo"].rollout.group_size, arms["grpo"].optim.lr) == (
        False,
        8,
        0.5,
    )
    assert arms["p2o"] == dataclasses.replace(loading.from_config_dict(values), arms=())
    assert arms["grpo"].arms == ()


def test_wrong_arms_are_told_together():
    values = loading.load_config_dict(SMOKE, [("arms", "('a gepa.enabld=false', 'b optim.lr=x')")])
    assert problems_of(loading.arms, values) == [
        "config.arms, a: config.gepa.enabld: no such key (did you mean config.gepa.enabled?)",
        "config.arms, b: config.optim.lr=x: expected float",
    ]


def test_lengths_that_follow_from_settings():
    cfg = changed(
        data__max_prompt_tokens=100,
        gepa__max_template_tokens=30,
        rollout__max_new_tokens=50,
        rollout__prompt_buckets=(64, 120),
    )
    assert config.max_templated_prompt_tokens(cfg) == 120  # the sampler takes no more
    assert (config.trained_row_tokens(cfg), config.templated_row_tokens(cfg)) == (150, 170)
    off = dataclasses.replace(cfg, distill=config.DistillConfig(mode="off"))
    assert config.trained_row_tokens(off) == 170
    assert config.mesh_shape(config.MeshConfig(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 2)


def test_a_float_whose_default_is_a_whole_number_takes_fractions():
    """config.gepa.dev_size is a count or a fraction, in a file and on the command line."""
    values = loading.to_config_dict(Config())
    values.gepa.dev_size = 0.25
    assert loading.from_config_dict(values).gepa.dev_size == 0.25
    for text, value in (("9", 9.0), ("0.5", 0.5)):
        assert loading.load(SMOKE, [("gepa.dev_size", text)]).gepa.dev_size == value


def test_an_integer_too_large_for_a_float_is_out_of_range():
    cfg = loading.load(SMOKE, [("optim.lr", "1" + "0" * 400)])
    assert "config.optim.lr=inf must be finite" in rules.problems(config.resolve(cfg), 1)


def test_settings_of_an_earlier_run_have_their_current_names():
    values = {"preset": "faithful", "rollout": {"bank_tokens": 5, "slots": 2}}
    assert names.current_names(values) == {
        "preset": "faithful",
        "rollout": {"prompt_cache_tokens": 5, "slots": 2},
    }
    assert values["rollout"] == {
        "bank_tokens": 5,
        "slots": 2,
    }, "the run's own record is not changed"
    known = set(setting.settings(Config))
    assert set(names.RENAMED.values()) <= known and not set(names.RENAMED) & known


def test_removed_settings_of_an_earlier_run_are_left_out():
    before = {
        "assign": {"bandit": True, "bandit_prior": 8.0, "plain_rollouts": 4},
        "distill": {"mode": "transfer"},
        "mining": {},
    }
    assert names.current_names(before) == {
        "assign": {"plain_rollouts": 4},
        "distill": {"mode": "ratio_mask"},
        "mining": {},
    }
    with pytest.raises(ConfigError, match=r"assign.bandit: no such key \(removed: no suite showed"):
        loading.load(SMOKE, [("assign.bandit", "true")])
    assert not names.REMOVED & setting.settings(Config).keys()
