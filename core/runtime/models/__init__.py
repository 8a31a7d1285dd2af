"""Architecture descriptions: from the header of a model's files to its step graph and its weights."""

from runtime.models.build import build_graph
from runtime.models.describe import describe_model, find_architecture
from runtime.models.recipes import WeightRecipe, load_weight_bytes
from runtime.models.rope import inverse_frequencies
from runtime.models.spec import ExpertSpec, LayerSpec, ModelSpec, RopeParameters, kv_bytes_per_token
from runtime.models.traits import ARCHITECTURES, Architecture
from runtime.models.weights import parameter_count, weight_shapes, weight_source

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ExpertSpec",
    "LayerSpec",
    "ModelSpec",
    "RopeParameters",
    "WeightRecipe",
    "build_graph",
    "describe_model",
    "find_architecture",
    "inverse_frequencies",
    "kv_bytes_per_token",
    "load_weight_bytes",
    "parameter_count",
    "weight_shapes",
    "weight_source",
]
