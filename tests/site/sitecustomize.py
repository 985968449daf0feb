"""What every Python process that tests start imports first: it collects garbage less often.

Tracing makes many objects, few of them garbage. Without this, a tenth of a short training run's
time goes into looking for it.
"""

import gc

gc.set_threshold(200_000)
