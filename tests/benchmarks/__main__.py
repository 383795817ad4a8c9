"""`python -m tests.benchmarks [name ...] [--quick]`: measures, prints, and writes a dated Markdown table."""

from __future__ import annotations

import os
import sys

# As the server's own command does, before NumPy loads: sums and heads use one thread each.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


if __name__ == "__main__":
    from tests.benchmarks.runner import main

    sys.exit(main())
