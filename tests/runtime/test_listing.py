from p2o_jax.runtime.listing import shortened


def test_the_last_line_counts_what_is_not_shown():
    assert shortened(["a", "b", "c"], 2) == ["a", "b", "... and 1 more"]
    assert shortened(["a", "b", "c"], 1, "x: ", "rows") == ["a", "x: ... and 2 more rows"]
    assert shortened(["a", "b"], 2) == ["a", "b"] and shortened([], 2) == []
