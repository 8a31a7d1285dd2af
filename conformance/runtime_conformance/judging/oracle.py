"""The oracle of a case: float64 values, and the deviation that the declared rounding points allow each element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.backend import Numerics
from runtime.dtypes import round_to
from runtime.ops import EXACT, Rounding
from runtime.ops.rounding import SIGNIFICAND_BITS
from runtime_conformance.case import Case, output_specs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RUNS = 24
"""Random runs: the deviation is then known to about 15 %."""
SMALLEST_NORMAL = {"f32": 2.0**-126, "bf16": 2.0**-126, "f64": 2.0**-1022, "f16": 2.0**-24}
"""What may be flushed to zero: subnormals of formats with eight exponent bits; float16 must keep its own."""
_MIN_EXPONENT = {"f16": -14, "f64": -1022, "f8_e4m3": -6, "f8_e5m2": -14}
ELEMENTARY_ULP = 0.75
"""Root mean square error of exp, tanh, rsqrt and their like in a kernel's registers, beyond one rounding."""
_UNIFORM = 12.0**-0.5
"""Standard deviation of a rounding error, in units of the last place."""


@dataclass(frozen=True)
class Expected:
    """One output: correct values, their format, the format that the device declares, and what it may deviate.

    value     float64 (int64 for integers), not rounded
    format    of the tensor; `declared` the coarser of it and the declared output
    sigma     standard deviation of every element, or None for integers and bytes
    computed  whether the runs moved the element, or None; what is only moved, or left alone, has no error to average
    gain_se   standard error of the overall gain
    spread    standard deviation of rms z from run to run: large where elements are few or share their errors
    """

    value: NDArray[Any]
    format: str
    declared: str
    sigma: NDArray[np.float64] | None = None
    gain_se: float = 0.0
    spread: float = 0.0
    computed: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Oracle:
    """What the outputs of a case should be.

    is_exact       they must match bit for bit
    shares_scales  activations are declared as integers with shared scales, which hold neither NaN nor infinity: what
                   is not finite may then come out as either
    """

    outputs: tuple[Expected, ...]
    is_exact: bool
    shares_scales: bool = False


def points_of(case: Case, numerics: Numerics) -> dict[str, str]:
    """Rounding point -> format, for the outputs and caches that the case has."""
    points = numerics.points()
    points["intermediate"] = numerics.output
    kv = next((t.format for t in case.inputs.values() if t.layout == "kv"), None)
    if kv is not None:
        points["kv"] = "i8/32" if kv == "q8_0" else kv
    for spec in output_specs(case):
        if spec.format.kind == "float" and spec.layout == "plain":
            points["output"] = coarser(points["output"], spec.format.name)
            break
    return points


def coarser(a: str, b: str) -> str:
    """The format with fewer significant bits."""
    return min((a, b), key=lambda f: SIGNIFICAND_BITS.get(f, 0))


def run_reference(case: Case, inputs: Mapping[str, Any], rounding: Rounding = EXACT) -> tuple[Any, ...]:
    """Outputs by the reference; inputs that it changes are copied first."""
    import numpy as np

    given = {n: np.array(v) if case.inputs[n].layout == "kv" else v for n, v in inputs.items()}
    return case.declaration.run_reference(rounding, given, case.attrs)


def make_oracle(case: Case, inputs: Mapping[str, Any], numerics: Numerics, seed: int = 0) -> Oracle:
    """Run the reference plainly, and `RUNS` times with random rounding at the declared points."""
    import numpy as np

    points = points_of(case, numerics)
    values = run_reference(case, inputs)
    specs = output_specs(case)
    formats = [(s.format.name, _declared(s, points)) for s in specs]
    is_exact = case.kind == "exact" and _is_exact(case, inputs, points, values)
    needs_sigma = case.declaration.check.metric == "statistical" or case.op == "moe_route@1"
    if is_exact or not needs_sigma:
        made = [Expected(np.asarray(v), *f) for v, f in zip(values, formats)]
        return Oracle(tuple(made), is_exact, points["activation"].startswith("i8/"))
    rng = np.random.Generator(np.random.Philox(key=[seed, int(case.id[-6:], 16)]))
    errors: list[list[Any]] = [[] for _ in values]
    for _ in range(RUNS):
        rounding = DeclaredRounding(points, "random", rng)
        if case.op == "attention@1":  # scores are scaled, capped and reduced before the exponential
            rounding.exponential_ulp = 2.5 if case.attrs.get("softcap") else 1.2
        noisy = run_reference(case, inputs, rounding)
        with np.errstate(all="ignore"):
            for error, y, value in zip(errors, noisy, values):
                error.append(np.asarray(y, float) - value)
    made = []
    elementary = 0.0 if case.declaration.family == "matmul" else ELEMENTARY_ULP
    for value, (fmt, declared), error in zip(values, formats, errors):
        if np.asarray(value).dtype.kind != "f":
            made.append(Expected(np.asarray(value), fmt, declared))
            continue
        if case.op == "softmax@1" and not case.attrs.get("log"):
            error = _with_arguments(np.asarray(value, float), error, rng)
        deviation = _deviation(np.asarray(value, float), np.stack(error), (declared, fmt), points, elementary)
        made.append(Expected(np.asarray(value, float), fmt, declared, *deviation))
    return Oracle(tuple(made), False, points["activation"].startswith("i8/"))


class DeclaredRounding(Rounding):
    """Random rounding that leaves alone what the format holds already: a float32 input costs float32 nothing.

    `exponential_ulp` is what probabilities in float32 cost: the rounding of the exponential and of its argument.
    """

    exponential_ulp = ELEMENTARY_ULP

    def __call__(self, point: str, x: NDArray[Any]) -> NDArray[Any]:
        """As `Rounding`, with no error where rounding to nearest would make none."""
        import numpy as np

        fmt = self.formats.get(point)
        if fmt is not None and fmt.startswith("i8/"):  # one NaN must not hide what its group may deviate
            is_finite = np.isfinite(x)
            return np.where(is_finite, super().__call__(point, np.where(is_finite, x, 0.0)), x)
        noisy = super().__call__(point, x)
        if self.mode != "random" or fmt is None or fmt == "f64":
            return noisy
        if point == "probability" and fmt == "f32":
            noisy = x + self.exponential_ulp / _UNIFORM * (noisy - x)
        result: NDArray[Any] = np.where(round_to(fmt, x) == x, x, noisy)
        return result


def _with_arguments(value: NDArray[Any], errors: list[Any], rng: Any) -> list[Any]:
    """exp(a) inherits the rounding of a float32 argument: |a| units, in each of its scaling and its reduction."""
    import numpy as np

    argument = np.abs(np.log(np.maximum(value, 1e-300)))
    return [e + rng.standard_normal(value.shape) * value * argument * 2.0**-24 for e in errors]


def _declared(spec: Any, points: Mapping[str, str]) -> str:
    if spec.format.kind != "float":
        return str(spec.format.name)
    name = spec.format.name
    return name if spec.layout == "kv" else coarser(name, points["output"])


def _is_exact(case: Case, inputs: Mapping[str, Any], points: Mapping[str, str], values: tuple[Any, ...]) -> bool:
    """Whether rounding activations and probabilities as declared changes nothing, and sums hold 24 bits."""
    import numpy as np

    if points["accumulate"] not in ("f32", "f64"):
        return False
    before = {p: f for p, f in points.items() if p in ("activation", "probability", "intermediate")}
    tensors = [s.format.name for s in output_specs(case) if s.format.kind == "float" and s.layout == "plain"]
    if tensors and points["output"] != coarser(tensors[0], "f64"):
        before["output"] = points["output"]  # declared coarser than the tensor: it must not matter here
    rounded = run_reference(case, inputs, Rounding(before, "nearest"))
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in zip(rounded, values))


def _deviation(
    value: NDArray[Any], errors: NDArray[Any], formats: tuple[str, str], points: Mapping[str, str], elementary: float
) -> tuple[NDArray[np.float64], float, float, NDArray[np.bool_]]:
    """Standard deviation per element, drawn toward its row's, of the gain, and of rms z: see `Expected`."""
    import numpy as np

    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        errors = np.where(np.isfinite(errors), errors, 0.0)
        variance = (errors**2).mean(0)
        clean = np.where(finite, value, 0.0)
        floor = unit_in_last_place(clean, *formats) * _UNIFORM
        row = variance.mean(-1, keepdims=True) if variance.ndim else variance
        shared = np.minimum(row, 16 * variance + 4 * floor**2)
        held = points["accumulate"] if points["accumulate"] in ("f16", "bf16") else "f32"
        inner = elementary * unit_in_last_place(clean, held)
        sigma = np.sqrt(0.5 * variance + 0.5 * shared + (0.5 * floor) ** 2 + inner**2)
        power = float((clean * clean).sum())
        slopes = (errors * clean).reshape(len(errors), -1).sum(1) / power if power else np.zeros(1)
    # constants of a kernel (a scale, an epsilon) are rounded once for all elements
    least = 2.0 ** -(SIGNIFICAND_BITS.get(points["accumulate"], 24) if points["accumulate"] != "f64" else 24)
    # values that lie on the grid of the output share the direction in which they are rounded
    least += 0.06 * 2.0 ** -min(SIGNIFICAND_BITS.get(f, 24) for f in formats)
    sigma = np.maximum(sigma, floor)
    computed: NDArray[np.bool_] = finite & (errors != 0).any(0)
    scores = (errors / sigma)[:, computed]
    spread = float(np.sqrt((scores**2).mean(1)).std()) if scores.size else 0.0
    return sigma, float(np.sqrt((slopes**2).mean() + least**2)), spread, computed


def unit_in_last_place(x: NDArray[Any], *formats: str) -> NDArray[np.float64]:
    """Distance of neighbours of `x` in the coarsest of the formats; that of the smallest normal number below it."""
    import numpy as np

    _, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    units = []
    for fmt in formats:
        smallest = _MIN_EXPONENT.get(fmt, -126)
        at = np.maximum(np.where(x == 0, smallest, exponent - 1), smallest)
        units.append(np.ldexp(1.0, at - SIGNIFICAND_BITS.get(fmt, 24) + 1))
    result: NDArray[np.float64] = np.maximum.reduce(units)
    return result
