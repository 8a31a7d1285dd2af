"""What a saboteur is, and the faults of products, norms and rotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.backend import Numerics, QuantizedTensor
from runtime_conformance.saboteurs.backend import TestBackend, Wrapper, make_backend
from runtime_conformance.saboteurs.kernels import decoded
from runtime_conformance.saboteurs.precision import BF16, F32, INT8, Precision, rounded


@dataclass(frozen=True)
class Saboteur:
    """A wrong backend.

    op      operation whose cases should catch it, or "device" for the checks of the device
    doc     the fault, as a driver's author would describe it
    """

    name: str
    op: str
    doc: str
    wrapper: Wrapper | None = None
    precision: Precision = F32
    numerics: Numerics | None = None
    flags: tuple[str, ...] = ()
    base: type[TestBackend] = TestBackend
    also: Mapping[str, Wrapper] = field(default_factory=dict)

    def make(self) -> TestBackend:
        """The backend."""
        wrappers = {**({self.op: self.wrapper} if self.wrapper else {}), **self.also}
        return make_backend(self.precision, wrappers, flags=self.flags, numerics=self.numerics, base=self.base)


Change = Callable[[dict[str, Any]], Mapping[str, Any]]


def asks(change: Change) -> Wrapper:
    """A kernel that computes the right answer to a slightly wrong question: `change` gives the inputs to replace."""

    def wrap(honest: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **given: honest(**{**given, **change(given)})

    return wrap


def answers(change: Callable[[Any, dict[str, Any]], Any]) -> Wrapper:
    """A kernel that spoils its right answer."""

    def wrap(honest: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **given: change(honest(**given), given)

    return wrap


def changed(y: Any, where: Any, value: Any) -> Any:
    """A copy of `y` with `value` at `where`."""
    y = y.copy()
    y[where] = value
    return y


def without(**dropped: Any) -> Wrapper:
    """A kernel that ignores inputs or attributes: each is replaced by the value that means nothing."""

    def wrap(honest: Callable[..., Any]) -> Callable[..., Any]:
        def run(**given: Any) -> Any:
            kept = {n: v for n, v in given.items() if n not in dropped}
            return honest(**kept, **{n: v for n, v in dropped.items() if v is not None and n in given})

        return run

    return wrap


def _cut(given: dict[str, Any], width: int) -> dict[str, Any]:
    return {"x": given["x"][:, :width], "weight": decoded(given["weight"])[:, :width]}


def _raw(given: dict[str, Any], fmt: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The weight with its stored bytes changed, where it has the format `fmt`."""
    weight = given["weight"]
    if not isinstance(weight, QuantizedTensor) or weight.format.name != fmt:
        return {}
    blocks = weight.data.reshape(-1, weight.format.block_bytes).copy()
    data = change(blocks).reshape(weight.data.shape)
    return {"weight": QuantizedTensor(weight.format, weight.shape, data)}


def _with(blocks: Any, part: slice, value: Any) -> Any:
    blocks[:, part] = value
    return blocks


def _half_sums(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, weight: Any, bias: Any = None) -> Any:
        import numpy as np

        y = (x.astype(np.float16) @ decoded(weight).T.astype(np.float16)).astype(x.dtype)
        return y if bias is None else (y + bias).astype(x.dtype)

    return run


def _truncated(y: Any, given: dict[str, Any]) -> Any:
    import numpy as np

    bits = np.asarray(y, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(y.dtype)


def _truncating_quantiser(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, **given: Any) -> Any:
        import numpy as np

        width = x.shape[1] // 32 * 32
        groups = x[:, :width].astype(np.float32).reshape(len(x), -1, 32)
        scale = np.abs(groups).max(-1, keepdims=True) / np.float32(127)
        cut = np.trunc(groups / np.where(scale == 0, np.float32(1), scale)) * scale
        y = x.astype(np.float32)
        y[:, :width] = cut.reshape(len(x), width)
        return F32.out(honest(x=y, **given), x)

    return run


def _transposed_tile(y: Any, given: dict[str, Any]) -> Any:
    n = min(8, *y.shape)
    return changed(y, (slice(0, n), slice(0, n)), y[:n, :n].T)


def _stale_weight() -> Wrapper:
    kept: dict[Any, Any] = {}

    def wrap(honest: Callable[..., Any]) -> Callable[..., Any]:
        def run(**given: Any) -> Any:
            weight = decoded(given["weight"])
            first = kept.setdefault(weight.shape[1] % 7, weight.copy())
            return honest(**{**given, "weight": first if first.shape == weight.shape else weight})

        return run

    return wrap


def _bf16_inputs(given: dict[str, Any]) -> dict[str, Any]:
    return {"x": rounded("bf16", given["x"]).astype(given["x"].dtype)}


def _wobble(y: Any, given: dict[str, Any]) -> Any:
    import numpy as np

    return (y * (1 + 3e-7 * np.random.default_rng().uniform(-1, 1, y.shape))).astype(y.dtype)


def _single_differs(y: Any, given: dict[str, Any]) -> Any:
    import numpy as np

    if len(y) > 1:
        return y
    exact = given["x"].astype(np.float64) @ decoded(given["weight"]).astype(np.float64).T
    return (exact + given.get("bias", 0.0)).astype(y.dtype)


_BF16_CLAIM = Numerics("bf16", "f32", "bf16", "bf16", order="fixed")


def _clean(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"x": np.nan_to_num(given["x"], nan=0.0, posinf=6e4, neginf=-6e4)}


PRODUCTS = (
    Saboteur(
        "linear-last-k",
        "linear@1",
        "the last element of K is dropped",
        asks(lambda g: _cut(g, max(1, g["x"].shape[1] - 1))),
    ),
    Saboteur(
        "linear-last-block",
        "linear@1",
        "the last block of 32 of K is dropped",
        asks(lambda g: _cut(g, max(1, g["x"].shape[1] - 32))),
    ),
    Saboteur(
        "linear-k-tail",
        "linear@1",
        "what is left of K after whole blocks of 64 is dropped",
        asks(lambda g: _cut(g, max(1, g["x"].shape[1] // 64 * 64))),
    ),
    Saboteur(
        "linear-column-zero",
        "linear@1",
        "one output column is never written",
        answers(lambda y, g: changed(y, (slice(None), 5 % y.shape[1]), 0)),
    ),
    Saboteur(
        "linear-columns-swapped",
        "linear@1",
        "two columns are exchanged",
        answers(lambda y, g: changed(y, (slice(None), [0, -1]), y[:, [-1, 0]])),
    ),
    Saboteur(
        "linear-rows-swapped",
        "linear@1",
        "two rows are exchanged",
        answers(lambda y, g: changed(y, [0, -1], y[[-1, 0]])),
    ),
    Saboteur("linear-gain", "linear@1", "a gain of 1.01", answers(lambda y, g: (y * 1.01).astype(y.dtype))),
    Saboteur("linear-small-gain", "linear@1", "a gain of 1.003", answers(lambda y, g: (y * 1.003).astype(y.dtype))),
    Saboteur("linear-bias-ignored", "linear@1", "the bias is ignored", without(bias=None)),
    Saboteur(
        "linear-bias-twice",
        "linear@1",
        "the bias is added twice",
        asks(lambda g: {"bias": 2 * g["bias"]} if "bias" in g else {}),
    ),
    Saboteur(
        "linear-int8-as-bf16",
        "linear@1",
        "8-bit activations declared bf16",
        asks(lambda g: {"x": INT8.act(g["x"]).astype(g["x"].dtype)}),
        BF16,
    ),
    Saboteur(
        "linear-int4-as-int8",
        "linear@1",
        "4-bit activations declared 8-bit",
        asks(lambda g: {"x": rounded("i4/32", g["x"]).astype(g["x"].dtype)}),
        INT8,
    ),
    Saboteur("linear-bf16-as-f32", "linear@1", "bfloat16 activations declared float32", asks(_bf16_inputs)),
    Saboteur("linear-f16-overflow", "linear@1", "sums in float16, which overflow", _half_sums),
    Saboteur(
        "linear-truncates",
        "linear@1",
        "the result is truncated to bfloat16 instead of rounded",
        answers(_truncated),
        F32,
        _BF16_CLAIM,
    ),
    Saboteur(
        "linear-quantiser-truncates",
        "linear@1",
        "the quantiser of activations truncates",
        _truncating_quantiser,
        F32,
        INT8.declared,
    ),
    Saboteur(
        "linear-q8-scale",
        "linear@1",
        "q8_0: the scale of the next group",
        asks(lambda g: _raw(g, "q8_0", lambda b: _with(b, slice(0, 2), _rolled(b[:, 0:2])))),
    ),
    Saboteur(
        "linear-q4-nibbles",
        "linear@1",
        "q4_0: low and high nibbles exchanged",
        asks(lambda g: _raw(g, "q4_0", lambda b: _with(b, slice(2, 18), (b[:, 2:18] >> 4) | (b[:, 2:18] << 4)))),
    ),
    Saboteur(
        "linear-q4k-minimum",
        "linear@1",
        "q4_k: the minimum is not subtracted",
        asks(lambda g: _raw(g, "q4_k", lambda b: _with(b, slice(2, 4), 0))),
    ),
    Saboteur(
        "linear-q6k-scales",
        "linear@1",
        "q6_k: scales of the neighbouring sub-block",
        asks(lambda g: _raw(g, "q6_k", lambda b: _with(b, slice(192, 208), _turned(b[:, 192:208])))),
    ),
    Saboteur("linear-nan-swallowed", "linear@1", "NaN and infinities become numbers", asks(_clean)),
    Saboteur(
        "linear-odd-rows",
        "linear@1",
        "rows after a multiple of four are not computed",
        answers(lambda y, g: changed(y, slice(len(y) // 4 * 4, None), 0) if len(y) > 4 else y),
    ),
    Saboteur("linear-tile", "linear@1", "the first tile of 8 x 8 is transposed", answers(_transposed_tile)),
    Saboteur(
        "linear-wobbles", "linear@1", "the order of summation changes from run to run, declared fixed", answers(_wobble)
    ),
    Saboteur(
        "linear-batch",
        "linear@1",
        "another kernel for one row, declared batch invariant",
        answers(_single_differs),
        flags=("batch_invariant",),
    ),
    Saboteur("linear-stale-weight", "linear@1", "a repacked weight is found again by its width alone", _stale_weight()),
    Saboteur(
        "embed-last-token",
        "embed@1",
        "the last token of the vocabulary gives the row before it",
        asks(lambda g: {"token_ids": g["token_ids"] - (g["token_ids"] == len(decoded(g["weight"])) - 1)}),
    ),
    Saboteur("embed-scale", "embed@1", "the scale is ignored", without(scale=1.0)),
)


def _rolled(x: Any) -> Any:
    import numpy as np

    return np.roll(x, -1, axis=0)


def _turned(x: Any) -> Any:
    import numpy as np

    return np.roll(x, 1, axis=1)


def _narrow(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"inv_freq": given["inv_freq"].astype(np.float16).astype(np.float32)}


def _row_norm(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, weight: Any, **given: Any) -> Any:
        import numpy as np

        return honest(x=x, weight=np.tile(weight, x.shape[1] // len(weight)), **given)

    return run


def _fewer(n: int) -> Callable[[Any, dict[str, Any]], Any]:
    """The mean taken over n elements fewer than there are."""

    def change(y: Any, given: dict[str, Any]) -> Any:
        import numpy as np

        d = len(given["weight"])
        return (y * np.float32(max(1, d - n) / d) ** np.float32(0.5)).astype(y.dtype)

    return change


def _whole_head(given: dict[str, Any]) -> dict[str, Any]:
    """Frequencies padded with zeros to half a head: pairs are then half a head apart."""
    import numpy as np

    f = np.zeros(given["head_dim"] // 2, np.float32)
    f[: len(given["inv_freq"])] = given["inv_freq"]
    return {"inv_freq": f}


ROWS = (
    Saboteur("norm-fewer", "rms_norm@1", "the mean is over K - 1", answers(_fewer(1))),
    Saboteur("norm-tail", "rms_norm@1", "the last vector of 16 is left out of the mean", answers(_fewer(16))),
    Saboteur("norm-eps", "rms_norm@1", "eps is 1e-3 whatever is asked", asks(lambda g: {"eps": 1e-3})),
    Saboteur("norm-offset", "rms_norm@1", "the offset of the weight is ignored", without(weight_offset=0.0)),
    Saboteur("norm-heads", "rms_norm@1", "the norm of a head is taken over the whole row", _row_norm),
    Saboteur("norm-bf16", "rms_norm@1", "bfloat16 inside, declared float32", asks(_bf16_inputs)),
    Saboteur("layer-norm-bessel", "layer_norm@1", "the variance is divided by K - 1", answers(_fewer(1))),
    Saboteur("layer-norm-bias", "layer_norm@1", "the bias is ignored", without(bias=None)),
    Saboteur(
        "rope-pairs",
        "rope@1",
        "pairs of the other kind",
        asks(lambda g: {"interleaved": not g.get("interleaved", False)}),
    ),
    Saboteur(
        "rope-position", "rope@1", "positions are one too large", asks(lambda g: {"positions": g["positions"] + 1})
    ),
    Saboteur("rope-sign", "rope@1", "the rotation goes the other way", asks(lambda g: {"inv_freq": -g["inv_freq"]})),
    Saboteur("rope-scale", "rope@1", "the scale is ignored", without(scale=1.0)),
    Saboteur("rope-partial", "rope@1", "pairs are half a head apart although fewer elements rotate", asks(_whole_head)),
    Saboteur("rope-half-angles", "rope@1", "frequencies are kept in float16", asks(_narrow)),
)
