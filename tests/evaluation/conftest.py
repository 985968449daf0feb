"""So that the tests here find the fixtures of tests/data, which pytest's importlib mode does
not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
