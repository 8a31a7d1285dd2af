"""Capabilities as data: rules over facts, and how a rule answers for a whole range of a symbolic dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runtime.dtypes import Span
from runtime.errors import InvalidArgument

Coverage = Literal["full", "partial", "none"]


@dataclass(frozen=True)
class Numerics:
    """What a kernel really computes with; it sets the tolerance and is itself verified.

    activation   format into which it rounds its activations first ("i8/32": 8-bit integers, a scale per 32)
    accumulate   format of running sums
    probability  format of attention probabilities before they meet the values
    output       format of what it writes, before conversion to the output's own format
    order        "fixed" when the order of summation is the same in every run, otherwise "any"
    """

    activation: str = "f32"
    accumulate: str = "f32"
    probability: str = "f32"
    output: str = "f32"
    order: Literal["fixed", "any"] = "any"

    def points(self) -> dict[str, str]:
        """Rounding point -> format, as `runtime.ops.Rounding` takes it."""
        return {
            "activation": self.activation,
            "accumulate": self.accumulate,
            "probability": self.probability,
            "output": self.output,
        }


@dataclass(frozen=True)
class OneOf:
    """The fact must be one of `values`."""

    fact: str
    values: tuple[Any, ...]

    def test(self, value: Any) -> tuple[Coverage, str]:
        """Coverage and, unless full, the reason."""
        if value in self.values:
            return "full", ""
        allowed = ", ".join(str(v) for v in self.values)
        return "none", f"{self.fact} {value} is not one of {allowed}"


@dataclass(frozen=True)
class Range:
    """The fact, a size or the span of a symbolic dimension, must lie in lo..hi and be a multiple of `step`."""

    fact: str
    lo: int = 0
    hi: int | None = None
    step: int = 1

    def test(self, value: Any) -> tuple[Coverage, str]:
        """Coverage and, unless full, the reason. A span that is covered only in part is "partial"."""
        if not isinstance(value, (int, Span)):
            return "none", f"{self.fact} {value} is not a size"
        span = value if isinstance(value, Span) else Span(value, value)
        limits = f"{self.fact} >= {self.lo}" if self.hi is None else f"{self.lo} <= {self.fact} <= {self.hi}"
        if self.lo == 0 and self.hi is not None:
            limits = f"{self.fact} <= {self.hi}"
        if span.hi < self.lo or (self.hi is not None and span.lo > self.hi):
            return "none", f"supported for {limits}, the plan needs {span}"
        if self.step > 1 and (span.lo % self.step or (span.hi != span.lo and span.step % self.step)):
            return "none", f"{self.fact} must be a multiple of {self.step}, the plan needs {span}"
        if span.lo < self.lo or (self.hi is not None and span.hi > self.hi):
            return "partial", f"supported for {limits}, the plan needs {span}"
        return "full", ""


Condition = OneOf | Range


@dataclass(frozen=True)
class Rule:
    """One kernel's reach: the operation's key, conditions that must all hold, and its numerics.

    `flags`: deterministic, batch_invariant, capturable. `preference` ranks a backend's own rules, higher first.
    """

    op: str
    when: tuple[Condition, ...] = ()
    numerics: Numerics = field(default_factory=Numerics)
    flags: frozenset[str] = frozenset()
    preference: int = 0


@dataclass(frozen=True)
class Match:
    """The answer of a manifest for one node: how much of its range is covered, by which rule, and why not more."""

    coverage: Coverage
    rule: Rule | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class KVLayout:
    """A KV cache layout that a backend offers, in order of its preference."""

    block_sizes: tuple[int, ...] = (16,)
    formats: tuple[str, ...] = ("f16",)
    index_bits: int = 32


@dataclass(frozen=True)
class Manifest:
    """All that a backend can do, readable, comparable and plannable without the chip."""

    backend: str
    api_level: int = 1
    rules: tuple[Rule, ...] = ()
    kv_layouts: tuple[KVLayout, ...] = ()
    dims: Mapping[str, Span] = field(default_factory=dict)
    """Constraints of a step: symbolic dimension (T, S, P ...) -> values that the device accepts."""
    memory_pools: tuple[str, ...] = ("device",)
    collectives: tuple[str, ...] = ()
    executes_regions: bool = False
    """True when the device compiles connected regions itself and should be given the largest possible."""

    def match(self, op_key: str, facts: Mapping[str, Any]) -> Match:
        """The best rule for a node with these facts, or the reasons why there is none."""
        best = Match("none", reasons=("no rule in manifest",))
        reasons: list[str] = []
        for rule in sorted((r for r in self.rules if r.op == op_key), key=lambda r: -r.preference):
            coverage, why = _test(rule, facts)
            if coverage == "full":
                return Match("full", rule)
            if coverage == "partial" and best.coverage == "none":
                best = Match("partial", rule, tuple(why))
            reasons += why
        if best.coverage == "none" and reasons:
            return Match("none", reasons=tuple(dict.fromkeys(reasons)))
        return best

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back equal."""
        data = asdict(self)
        for rule, source in zip(data["rules"], self.rules):
            rule["flags"] = sorted(source.flags)
            rule["when"] = [{"kind": type(c).__name__, **asdict(c)} for c in source.when]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote; raises InvalidArgument naming what does not fit."""
        try:
            return cls(
                **{
                    **data,
                    "rules": tuple(_rule_from_json(r) for r in data.get("rules", ())),
                    "kv_layouts": tuple(
                        KVLayout(tuple(k["block_sizes"]), tuple(k["formats"]), k["index_bits"])
                        for k in data.get("kv_layouts", ())
                    ),
                    "dims": {n: Span(**s) for n, s in data.get("dims", {}).items()},
                    "memory_pools": tuple(data.get("memory_pools", ("device",))),
                    "collectives": tuple(data.get("collectives", ())),
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidArgument(f"this is no manifest: {error}") from error


def _test(rule: Rule, facts: Mapping[str, Any]) -> tuple[Coverage, list[str]]:
    coverage: Coverage = "full"
    why = []
    for condition in rule.when:
        if condition.fact not in facts:
            known = ", ".join(sorted(facts))
            return "none", [f"{rule.op} has no fact '{condition.fact}'; it has {known}"]
        answer, reason = condition.test(facts[condition.fact])
        if answer != "full":
            why.append(reason)
            coverage = "none" if "none" in (answer, coverage) else "partial"
    return coverage, why


def _rule_from_json(data: Mapping[str, Any]) -> Rule:
    kinds = {"OneOf": OneOf, "Range": Range}
    conditions: Sequence[Mapping[str, Any]] = data.get("when", ())
    when = []
    for c in conditions:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in c.items() if k != "kind"}
        when.append(kinds[c["kind"]](**fields))
    return Rule(
        op=data["op"],
        when=tuple(when),
        numerics=Numerics(**data.get("numerics", {})),
        flags=frozenset(data.get("flags", ())),
        preference=data.get("preference", 0),
    )
