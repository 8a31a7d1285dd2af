"""The weights of a model: what its graph needs, and where each comes from in the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import MalformedFile, Unsupported
from runtime.models.names import Alternative, Shape, Wanted, alternatives, is_ignorable
from runtime.models.recipes import F32, FP8_GROUP, Piece, WeightRecipe, fp8_squares
from runtime.models.spec import ExpertSpec, ModelSpec


def weight_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every trained weight of the graph by its name here, with its shape; outermost dimension first."""
    shapes: dict[str, Shape] = {"embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    for i, layer in enumerate(spec.layers):
        parts = dict(_attention_shapes(spec))
        experts = spec.experts if layer.sparse else None
        parts.update(_dense_shapes(spec) if experts is None else _sparse_shapes(spec, experts))
        shapes.update({f"layers.{i}.{part}": shape for part, shape in parts.items()})
    shapes["norm.weight"] = (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def parameter_count(spec: ModelSpec) -> int:
    """Number of trained parameters; a tied output matrix counts once."""
    return sum(prod(shape) for shape in weight_shapes(spec).values())


def weight_source(spec: ModelSpec) -> Mapping[str, WeightRecipe]:
    """Name of every weight of the graph -> how it is made from the file's tensors.

    Raises MalformedFile for a tensor that is missing, has another shape than the model's sizes demand, or that no part
    of the model uses.
    """
    recipes = {name: _find(spec, name, shape) for name, shape in weight_shapes(spec).items()}
    recipes.update(_rope_recipes(spec))
    used = {piece.tensor for recipe in recipes.values() for piece in recipe.pieces}
    surplus = [t for t in spec.tensors if t not in used and not is_ignorable(spec, t)]
    if surplus:
        raise MalformedFile(
            f"{len(surplus)} tensors belong to no part of a {spec.architecture} model, "
            f"e.g. {', '.join(f'{t} {spec.tensors[t]}' for t in surplus[:3])}"
        )
    return recipes


def _attention_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden, q_size, kv_size = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    yield "attn_norm.weight", (hidden,)
    for part, rows in (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)):
        yield f"{part}.weight", (rows, hidden)
        if spec.qkv_bias:
            yield f"{part}.bias", (rows,)
    if spec.qk_norm:
        yield "q_norm.weight", (spec.head_dim,)
        yield "k_norm.weight", (spec.head_dim,)
    if spec.sinks:
        yield "sinks.weight", (spec.num_heads,)
    yield "o_proj.weight", (hidden, q_size)
    if spec.o_bias:
        yield "o_proj.bias", (hidden,)
    if spec.post_norms:
        yield "attn_post_norm.weight", (hidden,)
        yield "ffn_post_norm.weight", (hidden,)
    yield "ffn_norm.weight", (hidden,)


def _dense_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    for part, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        yield f"{part}.weight", shape
        if spec.mlp_bias:
            yield f"{part}.bias", shape[:1]


def _sparse_shapes(spec: ModelSpec, experts: ExpertSpec) -> Iterator[tuple[str, Shape]]:
    hidden, inner, count = spec.hidden_size, experts.intermediate_size, experts.count
    yield "router.weight", (count, hidden)
    if experts.bias:
        yield "router.bias", (count,)
    for part, rows, columns in (("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)):
        yield f"experts.{part}.weight", (count, rows, columns)
        if experts.bias:
            yield f"experts.{part}.bias", (count, rows)
    shared = experts.shared_intermediate_size
    if shared:
        yield "shared_expert.router.weight", (1, hidden)
        yield "shared_expert.gate_proj.weight", (shared, hidden)
        yield "shared_expert.up_proj.weight", (shared, hidden)
        yield "shared_expert.down_proj.weight", (1, hidden, shared)


def _rope_recipes(spec: ModelSpec) -> Iterator[tuple[str, WeightRecipe]]:
    """Inverse frequencies that depend on divisors in the file; all others are constants of the graph."""
    for key, rope in spec.ropes.items():
        for tensor, name in (
            (rope.factors_tensor, f"rope.{key}.inv_freq"),
            (rope.short_tensor, f"rope.{key}.short.inv_freq"),
            (rope.long_tensor, f"rope.{key}.long.inv_freq"),
        ):
            if tensor is None:
                continue
            wanted = Wanted(tensor, (rope.rotary_dim // 2,))
            source = _checked(spec, wanted, name)
            pieces = (Piece(tensor, 0, source.nbytes()),)
            target = TensorSpec(F32, wanted.shape)
            yield name, WeightRecipe(target, pieces, "inv_freq", source=source, rope=rope)


def _find(spec: ModelSpec, name: str, shape: Shape) -> WeightRecipe:
    tried: list[str] = []
    for alternative in alternatives(spec, name, shape):
        if _is_present(spec, alternative):
            return _recipe(spec, name, shape, alternative)
        tried.append(next(p.tensor for p in alternative.parts if p.tensor not in spec.tensors))
    also = f" (nor {', '.join(tried[1:])})" if len(tried) > 1 else ""
    raise MalformedFile(
        f"tensor '{tried[0]}'{also} is missing; a {spec.architecture} model with {spec.num_layers} layers needs it "
        f"for {name} {list(shape)}"
    )


def _is_present(spec: ModelSpec, alternative: Alternative) -> bool:
    return all(part.tensor in spec.tensors for part in alternative.parts)


def _recipe(spec: ModelSpec, name: str, shape: Shape, alternative: Alternative) -> WeightRecipe:
    sources = [_checked(spec, part, name) for part in alternative.parts]
    first = sources[0]
    scales = [_fp8_scales(spec, part.tensor) for part in alternative.parts]
    if first.format.name == "f8_e4m3" and scales[0] is not None:
        return _fp8_recipe(spec, name, shape, alternative, scales)
    if alternative.transform == "mxfp4":
        target = TensorSpec(FORMATS["mxfp4"], shape)
    elif alternative.transform == "f32":
        target = TensorSpec(F32, shape)
        if first.format.name == "f32":
            alternative = Alternative(alternative.parts)
    else:
        target = TensorSpec(first.format, shape)
        if any(s.format.name != first.format.name for s in sources):
            kinds = ", ".join(sorted({s.format.name for s in sources}))
            raise Unsupported(f"{name} would mix formats ({kinds}); parts of one weight must have one format")
        if alternative.transform != "concat" and first.format.is_quantized:
            raise Unsupported(f"{name}: columns of {first.format.name} blocks cannot be taken apart")
    pieces = tuple(_piece(part, source) for part, source in zip(alternative.parts, sources))
    source = None if alternative.transform == "concat" else first
    return WeightRecipe(target, pieces, alternative.transform, source, alternative.start, alternative.step)


def _fp8_scales(spec: ModelSpec, tensor: str) -> str | None:
    """Scales of an FP8 checkpoint; both names mean what codes are multiplied by."""
    return next((s for s in (f"{tensor}_scale_inv", f"{tensor}_scale") if s in spec.tensors), None)


def _fp8_recipe(
    spec: ModelSpec, name: str, shape: Shape, alternative: Alternative, scales: Sequence[str | None]
) -> WeightRecipe:
    pieces: list[Piece] = []
    rows, columns = alternative.parts[0].shape[-2:]
    if alternative.transform != "concat" or any(p.num_rows is not None for p in alternative.parts):
        raise Unsupported(f"{name}: FP8 weights with scales are read where each tensor is a matrix of its own")
    if columns % FP8_GROUP:
        raise Unsupported(f"{name}: FP8 weights with scales need rows of whole groups of {FP8_GROUP}, not {columns}")
    found = None
    for part, scale in zip(alternative.parts, scales):
        stored = None if scale is None else spec.tensors[scale]
        if scale is None or stored is None or stored.format.name not in ("f32", "bf16", "f16"):
            raise MalformedFile(f"tensor '{part.tensor}' is f8_e4m3 and has no scales in f32, bf16 or f16 beside it")
        size = stored.resolve({})
        if size not in ((), (1,), (rows,), (rows, 1), fp8_squares((rows, columns))) or found not in (None, stored):
            raise Unsupported(
                f"tensor '{scale}' is {stored}; scales are read of a whole matrix, of its {rows} rows, or of squares "
                f"of {FP8_GROUP}, alike for all parts of a weight"
            )
        found = stored
        pieces += [Piece(part.tensor, 0, rows * columns), Piece(scale, 0, stored.nbytes())]
    return WeightRecipe(TensorSpec(FORMATS["f8_e4m3_g128"], shape), tuple(pieces), "fp8", found)


def _piece(part: Wanted, source: TensorSpec) -> Piece:
    if part.num_rows is None:
        return Piece(part.tensor, 0, source.nbytes())
    row_bytes = source.format.nbytes(part.shape[-1:] if len(part.shape) > 1 else (1,))
    return Piece(part.tensor, part.first_row * row_bytes, part.num_rows * row_bytes)


def _checked(spec: ModelSpec, part: Wanted, name: str) -> TensorSpec:
    """The file's tensor, of the shape that the model's sizes demand; leading dimensions of 1 do not count."""
    found = spec.tensors.get(part.tensor)
    if found is None:
        raise MalformedFile(f"tensor '{part.tensor}' {list(part.shape)} is missing; {name} needs it")
    if _essential(found.resolve({})) != _essential(part.shape):
        raise MalformedFile(
            f"tensor '{part.tensor}' is {found}; the sizes in the model's header demand shape {list(part.shape)} "
            f"for {name}"
        )
    return TensorSpec(found.format, part.shape)


def _essential(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
