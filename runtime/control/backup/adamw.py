"""The optimiser's step, for whoever has a state and a gradient: workers on a CPU, and the backup.

Every operation on fp32 is one that IEEE 754 wants correctly rounded (+, -, *, / and the square root), and no
two are fused. So the bits do not depend on the processor, on how wide its vectors are or where a block ends.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtime.control.wire import AdamW

# Numbers that are worked on at once: what is needed of them fits into a core's cache.
_BLOCK = 1 << 15


class Factors(NamedTuple):
    """The scalars of one step; `rate` contains the correction of the first moment."""

    decay: float
    first_share: float
    second_share: float
    second_correction: float
    rate: float

    @classmethod
    def of(cls, step: int, optimiser: AdamW) -> Factors:
        """For `step`, which counts from 0."""
        count = step + 1
        return cls(
            decay=1 - optimiser.learning_rate * optimiser.weight_decay,
            first_share=1 - optimiser.beta1,
            second_share=1 - optimiser.beta2,
            second_correction=1 / math.sqrt(1 - optimiser.beta2**count),
            rate=optimiser.learning_rate / (1 - optimiser.beta1**count),
        )


def apply(
    state: npt.NDArray[np.float32], gradient: npt.NDArray[np.float32], step: int, optimiser: AdamW
) -> None:
    """Bring `state`, [3, N] (weights, first and second moment) before `step`, to the step after it."""
    import numpy as np

    _, _, beta1, beta2, epsilon = optimiser
    decay, first_share, second_share, second_correction, rate = Factors.of(step, optimiser)
    size = gradient.size
    space = np.empty((2, min(_BLOCK, size)), dtype=np.float32)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        weights, first, second = state[:, start:end]
        g = gradient[start:end]
        one, other = space[:, : end - start]
        weights *= decay
        first *= beta1
        first += np.multiply(g, first_share, out=one)
        second *= beta2
        np.multiply(g, g, out=one)
        one *= second_share
        second += one
        np.sqrt(second, out=one)
        one *= second_correction
        one += epsilon
        np.multiply(first, rate, out=other)
        other /= one
        weights -= other
