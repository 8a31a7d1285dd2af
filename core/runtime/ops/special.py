"""Functions that numpy lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Coefficients of W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969), highest
# power first; for |x| < 0.46875, up to 4, and beyond.
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1),
        *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
        1.23033935479799725e3,
    ),
    (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3),
        *(3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
    ),
)
_LARGE = (
    (
        *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1),
        *(1.60837851487422766e-2, 6.58749161529837803e-4),
    ),
    (
        *(1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2),
        2.33520497626869185e-3,
    ),
)


def erf(x: NDArray[Any]) -> NDArray[Any]:
    """The error function in float64, elementwise; within a few units of the last place."""
    import numpy as np

    a = np.abs(x)
    squared = np.minimum(a, 0.46875) ** 2
    small = x * np.polyval(_SMALL[0], squared) / np.polyval(_SMALL[1], squared)
    middle = np.clip(a, 0.46875, 4.0)
    complement = np.exp(-middle * middle) * np.polyval(_MIDDLE[0], middle) / np.polyval(_MIDDLE[1], middle)
    large = np.clip(a, 4.0, 10.0)  # erf(10) is 1 in float64
    inverse = 1.0 / (large * large)
    tail = 1.0 / np.sqrt(np.pi) - inverse * np.polyval(_LARGE[0], inverse) / np.polyval(_LARGE[1], inverse)
    complement = np.where(a > 4.0, np.exp(-large * large) / large * tail, complement)
    result: NDArray[Any] = np.where(a < 0.46875, small, np.sign(x) * (1.0 - complement))
    return result


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + exp(-x)) without overflow."""
    import numpy as np

    small = np.exp(-np.abs(x))
    result: NDArray[Any] = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return result
