"""Lets the tests of this folder import their toy world by name, and property tests take their
time on a busy machine.
"""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("gepa", deadline=None)
settings.load_profile("gepa")
