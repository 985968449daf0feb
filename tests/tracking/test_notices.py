"""Lines about metrics that are easily overlooked."""

from p2o_jax.tracking import notices


def test_a_mask_that_removes_what_is_to_be_learned_is_reported_once():
    of_step = notices.Notices().of_step
    assert of_step({"rollout/frac_truncated": 0.0, "distill/frac_right_masked": 0.05}) == []
    assert of_step({"rollout/frac_truncated": 0.0}) == []
    (line,) = of_step({"rollout/frac_truncated": 0.0, "distill/frac_right_masked": 0.19})
    assert line.startswith("!!! config.distill leaves 19% of the tokens of right templated")
    assert of_step({"rollout/frac_truncated": 0.0, "distill/frac_right_masked": 0.5}) == []


def test_responses_that_stop_ending_are_reported():
    """Not those that never ended."""
    of_step = notices.Notices().of_step
    assert [of_step({"rollout/frac_truncated": x}) for x in (0.98, 1.0)] == [[], []]
    assert of_step({"rollout/frac_truncated": 0.7}) == []
    (line,) = of_step({"rollout/frac_truncated": 1.0})
    assert "100% are cut" in line and "70% at best" in line


def test_a_reflector_without_fences_is_reported():
    assert notices.of_search([]) == []
    assert notices.of_search(["no_fence"] * 3 + ["gate"]) == []
    (line,) = notices.of_search(["no_fence"] * 8 + ["gate"] * 2)
    assert line.startswith("!!! 8 of the reflector's 10 replies have no template in a closed fence")
