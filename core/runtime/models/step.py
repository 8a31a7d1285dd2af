"""What every part of a step graph needs: the builder, the step's inputs, and weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.dtypes import Format, TensorSpec
from runtime.graph import GraphBuilder, Value
from runtime.models.recipes import WeightRecipe
from runtime.models.rope import attention_factor, inverse_frequencies, uses_long_factors
from runtime.models.spec import ModelSpec


class Step:
    """A step graph under construction."""

    def __init__(
        self,
        spec: ModelSpec,
        builder: GraphBuilder,
        recipes: Mapping[str, WeightRecipe],
        *,
        max_model_len: int,
        block_size: int,
        kv_format: Format,
    ) -> None:
        self.spec = spec
        self.builder = builder
        self.recipes = recipes
        self.max_model_len = max_model_len
        self.kv_spec = TensorSpec(kv_format, (2, "B", block_size, spec.num_kv_heads, spec.head_dim), "kv")
        self.token_ids = builder.input("token_ids", "i32", ("T",))
        self.positions = builder.input("positions", "i32", ("T",))
        self.query_start_loc = builder.input("query_start_loc", "i32", ("Q",))
        self.seq_lens = builder.input("seq_lens", "i32", ("S",))
        self.block_table = builder.input("block_table", "i32", ("S", "P"))
        self.slot_mapping = builder.input("slot_mapping", "i32", ("T",))
        self.logits_rows = builder.input("logits_rows", "i32", ("R",))

    def op(self, op_name: str, name: str, attrs: Mapping[str, Any] | None = None, **inputs: Value | None) -> Any:
        """A node called `name`."""
        return self.builder.op(op_name, name=name, attrs=attrs, **inputs)

    def weight(self, name: str) -> Value:
        """The weight called `name`."""
        return self.builder.weight(name, self.recipes[name].spec)

    def optional(self, name: str) -> Value | None:
        """The weight called `name` if the model has it."""
        return self.weight(name) if name in self.recipes else None

    def weights(self, name: str, **ports: str) -> dict[str, Value | None]:
        """Weight and bias of several projections by port name: q="q_proj" gives q_weight and q_bias."""
        inputs: dict[str, Value | None] = {}
        for port, projection in ports.items():
            inputs[f"{port}_weight"] = self.weight(f"{name}{projection}.weight")
            inputs[f"{port}_bias"] = self.optional(f"{name}{projection}.bias")
        return inputs

    @property
    def batch(self) -> dict[str, Value]:
        """The inputs that say which rows belong to which sequence, and where its keys are."""
        return {
            "block_table": self.block_table,
            "query_start_loc": self.query_start_loc,
            "seq_lens": self.seq_lens,
        }

    def linear(self, name: str, x: Value) -> Value:
        """The projection `name`, with its bias if it has one."""
        y: Value = self.op(
            "linear", name, x=x, weight=self.weight(f"{name}.weight"), bias=self.optional(f"{name}.bias")
        )
        return y

    def norm(self, name: str, x: Value) -> Value:
        """The RMS norm `name` over runs of as many elements as its weight has."""
        y: Value = self.op("rms_norm", name, self.norm_attrs, x=x, weight=self.weight(f"{name}.weight"))
        return y

    @property
    def norm_attrs(self) -> dict[str, float]:
        """Attributes of every norm of the model."""
        return {"eps": self.spec.rms_norm_eps, "weight_offset": self.spec.norm_weight_offset}

    @property
    def glu_attrs(self) -> dict[str, Any]:
        """Attributes of the dense gated activation."""
        return {"kind": self.spec.activation}

    @property
    def expert_glu_attrs(self) -> dict[str, Any]:
        """Attributes of the gated activation of experts."""
        return {"kind": self.spec.activation, "alpha": self.spec.activation_alpha, "limit": self.spec.activation_limit}

    def inv_freq(self, key: str) -> Value:
        """Inverse frequencies of the rotary embedding `key`: a constant, or a weight where the file holds divisors."""
        rope = self.spec.ropes[key]
        if rope.factors_tensor is not None:
            return self.weight(f"rope.{key}.inv_freq")
        if rope.long_tensor is not None:
            which = "long" if uses_long_factors(rope, self.max_model_len) else "short"
            return self.weight(f"rope.{key}.{which}.inv_freq")
        return self.builder.constant(f"rope.{key}.inv_freq", inverse_frequencies(rope, self.max_model_len)[0])

    def rope_scale(self, key: str) -> float:
        """Factor of cosine and sine of the rotary embedding `key`."""
        return attention_factor(self.spec.ropes[key])
