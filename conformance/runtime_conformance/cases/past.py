"""Cases that once failed somewhere; they stay for ever."""

from __future__ import annotations

from runtime_conformance.case import Case, Tensor

PAST_FAILURES: tuple[Case, ...] = (
    # a vectorised tail: K one short of the vector's width
    Case(
        "linear@1",
        {"x": Tensor("f32", (3, 15), data=("integers",)), "weight": Tensor("f32", (7, 15), "weight", ("integers",))},
        {},
        "exact",
    ),
    # a softmax whose running maximum starts at the smallest positive instead of the smallest negative number
    Case("softmax@1", {"x": Tensor("f32", (2, 40), data=("normal", 2.0, -90.0))}, {}, "normal"),
    # an argmax whose initial value is 0: all logits negative
    Case("argmax@1", {"x": Tensor("f32", (4, 130), data=("normal", 2.0, -60.0))}, {}, "normal"),
    # silu by exp(-x) without a guard: overflow where the result is plain zero
    Case("activation@1", {"x": Tensor("f32", (2, 64), data=("normal", 60.0, -100.0))}, {"kind": "silu"}, "normal"),
)
