import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax import config
from p2o_jax.rewards import normalize, pool
from p2o_jax.rewards.verify import MAX_ANSWER_CHARS, Verifier
from p2o_jax.types import Verdict


def box(content):
    return rf"Let us see. The answer is \boxed{{{content}}}."


@pytest.fixture(scope="module")
def math():
    with Verifier(config.RewardConfig(kind="math", workers=2, timeout_s=10.0)) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A Verifier whose judge does what the answer asks for."""
    folder = tmp_path_factory.mktemp("judges")
    (folder / "planted.py").write_text(
        textwrap.dedent("""
            import os, pathlib, signal, sys, time

            SEALED = False

            def judge(box, answer):
                if box.startswith("hang"):
                    while True:
                        pass
                if box.startswith("sleep"):
                    time.sleep(float(box.split()[1]))
                first = box.startswith("once") and not pathlib.Path(answer).exists()
                if box.startswith("crash") or first:
                    if box.startswith("once"):
                        pathlib.Path(answer).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if box.startswith("raise"):
                    raise RuntimeError(box)
                if box.startswith("light"):
                    heavy = {"jax", "transformers", "torch", "numpy"} & set(sys.modules)
                    platform, devices = (
                        os.environ[name] for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
                    )
                    return "wrong" if heavy or platform != "cpu" or devices else "correct"
                return "correct" if box.startswith("right") else "wrong"
            """)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with Verifier(
            config.RewardConfig(kind="math", workers=2, timeout_s=1.0), judge="planted:judge"
        ) as verifier:
            yield verifier


PAIRS = [  # reference, answer, right?
    ("42", "42", True),
    ("42", "43", False),
    ("42", "42.", True),
    ("42", "$42$", True),
    ("-3", "3", False),
    ("12", "1 2", False),
    ("1000", "1,000", True),
    ("0.5", ".50", True),
    ("0.5", r"\frac{1}{2}", True),
    ("1/2", r"\dfrac{1}{2}", True),
    ("1/2", "0.5", True),
    ("1/2", "2/1", False),
    ("1/3", "0.33", False),
    (r"\frac12", "0.5", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{2}{4}", r"\frac{1}{2}", True),
    (r"\frac{3}{2}", r"1\frac{1}{2}", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt{8}", r"3\sqrt{2}", False),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", True),
    (r"\pi", r"\pi", True),
    (r"2\pi r", r"2 \pi r", True),
    (r"\pi", "3.14", False),
    ("50\\%", "0.5", True),
    ("50\\%", "50", True),
    ("50\\%", "60\\%", False),
    (r"90^\circ", "90", True),
    (r"3\text{ cm}", "3", True),
    (r"\text{yes}", "yes", True),
    ("yes", "no", False),
    ("(A)", "A", True),
    ("A", "B", False),
    (r"\text{Monday}", "Monday", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "(x+2)^2", False),
    ("x=5", "5", True),
    ("5", "x = 5", True),
    ("5", "x = 6", False),
    ("1,2", "2, 1", True),
    ("1,2", "1, 3", False),
    ("(1,2)", r"\left( 1, 2 \right)", True),
    ("(1,2)", "(2,1)", False),
    ("[0,1)", r"\left[0, 1\right)", True),
    ("[0,1)", "[0,1]", False),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
    (r"1\times 10^{3}", "1000", True),
    ("2^{10}", "1024", True),
    ("2^{10}", "1025", False),
    (r"\infty", r"-\infty", False),
    ("5", "", False),
]


def test_math_verifier_judges_pairs(math):
    verdicts = math.verify(
        [box(answer) for _, answer, _ in PAIRS], [reference for reference, _, _ in PAIRS]
    )
    misses = [
        (*pair, v.status)
        for pair, v in zip(PAIRS, verdicts, strict=True)
        if v.status != ("correct" if pair[2] else "wrong")
    ]
    assert not misses
    assert all(
        v == Verdict(float(right), 1.0, v.status)
        for (_, _, right), v in zip(PAIRS, verdicts, strict=True)
    )


def test_no_box_is_no_answer(math):
    for text in ("", "the answer is 5", r"\boxed{5"):
        assert math.verify([text], ["5"]) == [Verdict(0.0, 0.0, "no_answer")]


def test_exact_kind_compares_texts_without_workers():
    with Verifier(config.RewardConfig(kind="exact")) as verifier:
        verdicts = verifier.verify(
            [box(" a  b\n"), box("ab"), box("0.5"), box(""), "a b"],
            ["a b", "a b", "1/2", "5", "a b"],
        )
        assert [v.status for v in verdicts] == ["correct", "wrong", "wrong", "wrong", "no_answer"]
        assert verifier.self_check(["a b", "}{", "5"]) == ["}{"]
        assert verifier.counts["started"] == 0


def test_plain_answers_start_no_worker():
    with Verifier(config.RewardConfig(kind="math")) as verifier:
        start = time.process_time()
        verdicts = verifier.verify(
            [box(str(i % 7)) for i in range(5000)], [str(i % 5) for i in range(5000)]
        )
        assert time.process_time() - start < 2.5  # 2,000 a second
        assert [v.answer_score for v in verdicts] == [float(i % 7 == i % 5) for i in range(5000)]
        assert verifier.counts == {"fast": 5000}


HOSTILE = [
    "9^{9^{9^9}}",
    "((((10!)!)!)!)!",
    r"\frac{1}{" * 200 + "1" + "}" * 200,
    "{" * 1500 + "}" * 1500,
    r"\sqrt{" * 600 + "2" + "}" * 600,
    "(" * 3000,
    "\x00" * 100,
    "\ud800",
    "٣",
    "1" * 4000,
    "1" * (MAX_ANSWER_CHARS + 1),
    "x" * 1_000_000,
    "\\" * 1000,
    "__import__('os').system('false')",
]


def test_hostile_answers_neither_hang_nor_break_the_pool():
    with Verifier(config.RewardConfig(kind="math", workers=2, timeout_s=0.7)) as verifier:
        start = time.monotonic()
        verdicts = verifier.verify(
            [box(h) for h in HOSTILE] + [box("2^3")], ["5"] * len(HOSTILE) + ["8"]
        )
        assert time.monotonic() - start < 60
        assert all(v.answer_score == 0 for v in verdicts[:-1])
        assert verdicts[0].status == "time_out"
        assert verdicts[-1].status == "correct"
        assert verdicts[HOSTILE.index("x" * 1_000_000)].status == "wrong"


def test_hung_worker_is_killed_and_order_kept(planted):
    before = planted.counts
    contents = [
        "right 1",
        "hang",
        "wrong 1",
        "right 2",
        "sleep 0.2",
        "right 3",
        "hang 2",
        "wrong 2",
    ]
    start = time.monotonic()
    verdicts = planted.verify([box(c) for c in contents], ["?"] * len(contents))
    assert [v.status for v in verdicts] == [
        "correct",
        "time_out",
        "wrong",
        "correct",
        "wrong",
        "correct",
        "time_out",
        "wrong",
    ]
    assert verdicts[1] == Verdict(0.0, 1.0, "time_out")
    assert time.monotonic() - start < 30
    assert (planted.counts - before)["time_out"] == 2


def test_crashed_worker_is_replaced(planted, tmp_path):
    contents = ["right", "crash", "once", "raise", "right too"]
    verdicts = planted.verify(
        [box(c) for c in contents], ["?", "?", str(tmp_path / "died"), "?", "?"]
    )
    # "once" dies the first time only, as if the machine had been out of memory: it gets a second
    # chance.
    assert [v.status for v in verdicts] == ["correct", "error", "wrong", "error", "correct"]


def test_worker_lost_while_idle_costs_no_answer(planted):
    planted.verify([box("right")], ["?"])
    for worker in planted._pool._workers:
        worker.process.kill()
        worker.process.wait()
    assert (
        planted.verify([box("right"), box("right 2")], ["?", "?"])
        == [Verdict(1.0, 1.0, "correct")] * 2
    )


def test_workers_are_light_and_see_no_accelerator(planted):
    assert planted.verify([box("light")], ["?"])[0].status == "correct"


def test_workers_are_recycled(planted, monkeypatch):
    monkeypatch.setattr(pool, "TASKS_PER_WORKER", 2)
    before = planted.counts["started"]
    assert all(
        v.status == "correct"
        for v in planted.verify([box(f"right {i}") for i in range(8)], ["?"] * 8)
    )
    assert planted.counts["started"] >= before + 2


def test_equal_pairs_are_judged_once_and_progress_ends_at_all(planted):
    seen = []
    verdicts = planted.verify(
        [box("sleep 0.3")] * 10 + [box("7")],
        ["?"] * 10 + ["7"],
        lambda done, total: seen.append((done, total)),
    )
    assert [v.status for v in verdicts] == ["wrong"] * 10 + ["correct"]
    assert seen == [(2, 11), (11, 11)]  # the plain answer and the first of the equal ones, then all


def test_interrupted_run_leaves_no_stale_answer(planted):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planted.verify([box("right"), box("sleep 0.3"), box("sleep 0.31")], ["?"] * 3, interrupt)
    assert [v.status for v in planted.verify([box("right"), box("wrong")], ["?", "?"])] == [
        "correct",
        "wrong",
    ]


def test_unknown_judge_is_an_error():
    with (
        Verifier(config.RewardConfig(workers=1), judge="no_such_module:f") as verifier,
        pytest.raises(RuntimeError, match="no_such_module"),
    ):
        verifier.verify([box("2x")], ["x"])


def test_self_check_names_answers_that_cannot_be_judged(math):
    good = ["1", r"\frac12", "Monday", r"\left[0,1\right)", "x^2"]
    assert math.self_check([*good, "}{", "", "a}b", *good, "1" * 5000]) == [
        "}{",
        "",
        "a}b",
        "1" * 5000,
    ]


def test_interpreter_exits_with_open_verifier_and_leaves_no_process(tmp_path):
    """Without `close`, and from a main module that children must not import again: it has no
    guard and would start over.
    """
    code = """
        import json, sys
        from p2o_jax import config
        from p2o_jax.rewards.verify import Verifier
        verifier = Verifier(config.RewardConfig(workers=1, timeout_s=20.0))
        assert verifier.verify([r"\\boxed{2x}"], ["x+x"])[0].status == "correct"
        print(json.dumps([w.process.pid for w in verifier._pool._workers]))
        assert "jax" not in sys.modules and "math_verify" not in sys.modules
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = dict(os.environ, PYTHONPATH=os.getcwd())
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    for pid in json.loads(done.stdout):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"\left( 1,\, 2 \right)", "(1,2)", True),
        (r"\text{ yes }", "yes", True),
        (r"\tfrac{3}{6}", "1/2", True),
        ("007", "7", True),
        ("1.", "1", True),
        ("1", "2", False),
        ("0.5", "50", False),
        ("0.3333333", "1/3", True),
        (r"0.\overline{3}", r"\frac13", True),
        (r"-2.1\overline{6}", r"-\frac{13}{6}", True),
        (r"0.\bar{9}", "1", True),
        (r"0.\overline{3}", "0.3", False),
        (r".\overline{12}", "12/99", True),
        ("12.5\\%", "12.5", True),
        ("12.5\\%", "1/8", True),
        ("0.5", "50\\%", True),
        ("5\\%", "50\\%", False),
        (r"10\,000", "10000", True),
        (r"10{,}000", "10000", True),
        (r"\varnothing", r"\{ \}", True),
        ("1/0", "1/0 ", True),
        ("1/0", "2/0", None),
        (r"\pi r", r"\pir", None),
        ("٣", "3", None),
        ("", "", False),
    ],
)
def test_plain_equality(a, b, equal):
    assert normalize.equal(a, b) is equal
    assert normalize.equal(b, a) is equal


@given(st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_fractions_equal_themselves_in_every_spelling(top, bottom):
    sign = "-" if top < 0 else ""
    spellings = [
        f"{sign}{abs(top)}/{bottom}",
        rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}",
        rf" {sign} \dfrac {{ {abs(top) * 2} }}{{{bottom * 2}}}",
    ]
    assert all(normalize.equal(spellings[0], s) for s in spellings)


@given(
    st.text(max_size=40),
    st.lists(
        st.sampled_from([*"0123456789./-+ {}$~", r"\frac", r"\left", r"\text{", "\\"]), max_size=15
    ).map("".join),
)
def test_plain_equality_never_fails_and_is_symmetric(a, b):
    assert normalize.equal(a, b) is normalize.equal(b, a)
    assert normalize.equal(b, b) in (True, False)
