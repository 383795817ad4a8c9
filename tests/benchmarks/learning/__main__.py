"""`python -m tests.benchmarks.learning [--quick] [--no-peers]`: every recipe and the peers on the same streams."""

from __future__ import annotations

import os
import sys

# Before NumPy loads: one thread a learner, so that the peers' process has the other core.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


if __name__ == "__main__":
    from tests.benchmarks.learning.runner import main

    if "--quick" not in sys.argv:
        os.nice(5)
    sys.exit(main())
