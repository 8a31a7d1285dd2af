"""Faults that no case of the oracle shows: each is found by one law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import ArrayBuffer, Buffer, KernelDevice, Region
from runtime_conformance.saboteurs.faults import Saboteur, answers, asks
from runtime_conformance.saboteurs.faults_device import Wrapped, device_base


def _small_square(given: dict[str, Any]) -> Any:
    import numpy as np

    x = given["x"].astype(np.float32)
    runs = x.reshape(len(x), -1, given["weight"].shape[0])
    return np.sqrt((runs * runs).mean(-1, keepdims=True) + np.float32(given["eps"]))


def _saturated(y: Any, given: dict[str, Any]) -> Any:
    """The mean square is kept in float16, which ends at 65504."""
    import numpy as np

    root = _small_square(given)
    factor = np.where(np.isfinite(root), root / np.minimum(root, np.float32(65504.0) ** np.float32(0.5)), 1.0)
    return (y.reshape(*root.shape[:2], -1) * factor).reshape(y.shape).astype(y.dtype)


def _one_pass(honest: Callable[..., Any]) -> Callable[..., Any]:
    """The variance as E[x^2] - E[x]^2, which cancels."""

    def run(x: Any, weight: Any, eps: float, bias: Any = None) -> Any:
        import numpy as np

        a = x.astype(np.float32)
        mean = a.mean(-1, keepdims=True, dtype=np.float32)
        variance = np.maximum((a * a).mean(-1, keepdims=True, dtype=np.float32) - mean * mean, np.float32(0))
        y = (a - mean) / np.sqrt(variance + np.float32(eps)) * weight
        return (y if bias is None else y + bias).astype(x.dtype)

    return run


def _from_zero(honest: Callable[..., Any]) -> Callable[..., Any]:
    """The running maximum starts at zero."""

    def run(x: Any, log: bool = False, scale: float = 1.0) -> Any:
        import numpy as np

        a = x.astype(np.float32) * np.float32(scale)
        shifted = a - np.maximum(a.max(-1, keepdims=True), np.float32(0))
        e = np.exp(shifted)
        total = e.sum(-1, keepdims=True)
        return (shifted - np.log(total) if log else e / total).astype(x.dtype)

    return run


def _unreduced(honest: Callable[..., Any]) -> Callable[..., Any]:
    """Angles beyond 2^17 are not reduced: sine and cosine leave the circle."""

    def run(positions: Any, inv_freq: Any, **given: Any) -> Any:
        import numpy as np

        y = honest(positions=positions, inv_freq=inv_freq, **given)
        is_far = (positions[:, None] * inv_freq).max(1) > 2.0**17
        return np.where(is_far[:, None], y * y.dtype.type(1.25), y).astype(y.dtype)

    return run


def _tail_after_prefill(y: Any, given: dict[str, Any]) -> Any:
    """A single query after a prompt falls between the kernel for prompts and the one for single queries."""
    import numpy as np

    starts = given["query_start_loc"]
    counts = starts[1:] - starts[:-1]
    if len(counts) < 2 or counts[-1] != 1 or counts.max() == 1:
        return y
    y = np.array(y)
    y[starts[-1] - 1] = 0
    return y


def _last_takes_all(given: dict[str, Any]) -> dict[str, Any]:
    """The last sequence ends with the rows of the step, its padding included."""
    import numpy as np

    starts = np.array(given["query_start_loc"])
    longest = given["seq_lens"][-1]
    if starts[-1] <= len(given["q"]) <= starts[-2] + longest:
        starts[-1] = len(given["q"])
    return {"query_start_loc": starts}


def _index16(y: Any, given: dict[str, Any]) -> Any:
    import numpy as np

    return y[0], (y[1] & 0xFFFF).astype(np.int32)


def _lenient(honest: Callable[..., Any]) -> Callable[..., Any]:
    """u * q > p instead of >=: a draft of probability 0 is accepted when the random number is 0."""

    def run(**given: Any) -> Any:
        return honest(**{**given, "uniform": given["uniform"].clip(-1.0)} | _nudged(given))

    return run


def _nudged(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    if "draft_probs" not in given:
        return {}
    target = given["target_probs"].astype(np.float64)
    rows, places = np.indices(given["draft_ids"].shape)
    ids = given["draft_ids"]
    is_zero = (given["uniform"][:, : ids.shape[1]] == 0) & (ids >= 0)
    target[rows[is_zero], places[is_zero], ids[is_zero]] += 1e-30
    return {"target_probs": target}


def _few_numbers(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"uniform": np.resize(given["uniform"][:64], given["uniform"].shape)}


class _Reusing(KernelDevice):
    """In a region of several nodes, the last row of a result is overwritten by an intermediate."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        def after(outputs: list[ArrayBuffer], inputs: list[ArrayBuffer]) -> None:
            import numpy as np

            for output in outputs:
                output.value = np.array(output.value)
                output.value[-1] = 0

        inner = super().compile(region, resident, hints)
        return Wrapped(inner, region, after) if len(region.nodes) > 1 else inner


class _Baking(KernelDevice):
    """A captured step keeps the integers that it was captured with."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Any:
        inner = super().compile(region, resident, hints)
        return _Baked(inner, region) if hints.get("capture") else inner


class _Baked:
    def __init__(self, inner: Any, region: Region) -> None:
        self.inner, self.fingerprint = inner, inner.fingerprint
        self._integers = [v.name for v in region.inputs if v.spec.format.name == "i32"]
        self._kept: dict[str, ArrayBuffer] = {}

    def submit(self, bindings: Mapping[str, Any], dims: Mapping[str, int]) -> Any:
        for name in self._integers:
            buffer = bindings[name]
            self._kept.setdefault(name, ArrayBuffer(buffer.nbytes, buffer.value.copy()))
        return self.inner.submit({**bindings, **self._kept}, dims)

    def close(self) -> None:
        self.inner.close()


LAW_BREAKERS: Sequence[Saboteur] = (
    Saboteur("norm-saturates", "rms_norm@1", "the mean square is kept in float16", answers(_saturated)),
    Saboteur("norm-one-pass", "layer_norm@1", "the variance is E[x^2] - E[x]^2", _one_pass),
    Saboteur("softmax-from-zero", "softmax@1", "the running maximum starts at zero", _from_zero),
    Saboteur("rope-unreduced", "rope@1", "large angles are not reduced", _unreduced),
    Saboteur(
        "rope-table-end",
        "rope@1",
        "the table of angles ends at 16384",
        asks(lambda g: {"positions": g["positions"].clip(max=16383)}),
    ),
    Saboteur(
        "tail-after-prefill",
        "attention@1",
        "a single query after a prompt is not computed",
        answers(_tail_after_prefill),
    ),
    Saboteur("padding-counted", "attention@1", "padding rows count as the last sequence's", asks(_last_takes_all)),
    Saboteur("topk-index16", "topk@1", "indices have 16 bits", answers(_index16)),
    Saboteur("draft-lenient", "verify_draft@1", "a draft of probability 0 may be accepted", _lenient),
    Saboteur("sample-few-numbers", "sample@1", "the random numbers repeat after 64 rows", asks(_few_numbers)),
    Saboteur(
        "region-reuse",
        "rms_norm_linear@1",
        "an intermediate of a region overwrites a result",
        base=device_base(_Reusing),
    ),
    Saboteur(
        "capture-bakes",
        "rope@1",
        "a captured step keeps the positions it was captured with",
        base=device_base(_Baking),
        flags=("capturable", "deterministic"),
    ),
    Saboteur(
        "untargeted-import",
        "kv_import@1",
        "the block after the last target is cleared",
        answers(lambda y, g: _cleared(y, g["block_ids"])),
    ),
)


def _cleared(kv: Any, ids: Any) -> Any:
    free = [b for b in range(kv.shape[1]) if b not in ids]
    if free:
        kv[:, free[-1]] = 0
    return kv
