"""The tests, a package so that they can share helpers: `from tests import factories`."""

import pytest

pytest.register_assert_rewrite("tests.rl.reference")
