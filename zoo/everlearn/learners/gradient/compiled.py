"""A step's tail as fused kernels (torch.compile, Ansel et al. 2024), where a recipe asks for that.

The tail alone: the head grows with every label, each time another program. Rows are a free size, so that batches of all
sizes share one. Serving, tests before learning and teachers compute as ever.

Measured on one thread of a CPU, forward and backward, relative to the time without: 0.61 for the last two blocks of
EfficientNet-Lite0 at 224 px and 96 rows, whose norms and activations are fused into their neighbours; 1.00 for the last
block of ViT-S/16 and 32 rows, which is products; 1.29 for a tail of 4 ms. To begin with it took 34 to 84 s on a busy
machine. No GPU was at hand.

Axes: N rows, n values at the cut, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from everlearn.errors import PreconditionError, UnavailableError
from everlearn.learners.gradient.network import Network

_ROWS: Final = 8
"""Of the pass that compiles; sizes of 0 and 1 would be taken for fixed."""


def compiled(network: Network, *, values: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes [N, n] -> [N, d] as the network's tail does, with its weights as they will be. Compiles at once.

    Raises PreconditionError (reason NOTHING_TO_COMPILE) without a tail, UnavailableError where torch cannot compile.
    """
    import torch._dynamo
    import torch._inductor.config

    if network.tail is None:
        raise PreconditionError(
            "train.compile compiles blocks that learn, and none does; leave it out",
            field="spec.train.compile",
            reason="NOTHING_TO_COMPILE",
        )
    # In this process: workers of their own would outlive it.
    torch._inductor.config.compile_threads = 1
    through: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network.tail, dynamic=True)
    inputs_Nn = torch.zeros(_ROWS, values, device=network.top.weight.device)
    try:
        network.features(inputs_Nn, through).sum().backward()
    # The compiler, its backends and the system's compiler share no base of error.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UnavailableError(
            f"torch cannot compile the tail here: {reason}; install a C++ compiler, or write train.compile: false",
            field="spec.train.compile",
        ) from error
    finally:
        for parameter in network.parameters():
            parameter.grad = None
    return through
