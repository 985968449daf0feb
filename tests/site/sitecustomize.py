"""What the Python processes that tests start do first: they look for garbage less often.

Tracing makes many objects, few of them garbage: a tenth of a short training run's time.
"""

import gc

gc.set_threshold(50_000)
