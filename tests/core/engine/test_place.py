"""What `--place` asks for: its form, the devices it names, and the context that fits where the layers go."""

from __future__ import annotations

import pytest

from runtime import LLM, SamplingParams
from runtime.backend import reference_manifest
from runtime.engine.config import EngineConfig
from runtime.engine.context import ContextPlan
from runtime.engine.files import open_for_engine
from runtime.engine.loading import plan_model
from runtime.engine.place import parse_place
from runtime.errors import InvalidArgument, OutOfMemory
from runtime.models.demo import demo_model_path

PLACE = "layers[0:1]=a,layers[1:]=b"


def fitted(requested: int | None = None, place: str = PLACE, **free_bytes: int) -> ContextPlan:
    """The context of the demo model, five layers of 681 KB, on two devices that keep 1 KB per layer and token."""
    path = demo_model_path()
    model = open_for_engine(path)
    with model.file:
        config = EngineConfig(path, max_num_seqs=1, place=place, max_model_len=requested)
        manifests = {name: reference_manifest(name) for name in "ab"}
        return plan_model(model, config, manifests, free_bytes=free_bytes)[1]


def test_rules_are_pairs_and_the_first_device_of_a_backend_is_called_as_it_is():
    assert parse_place(None) == []
    assert parse_place(" layers[0:2]=cuda:0 , layers[2:]=cuda:1,lm_head=cpu,") == [
        ("layers[0:2]", "cuda"),
        ("layers[2:]", "cuda:1"),
        ("lm_head", "cpu"),
    ]
    with pytest.raises(
        InvalidArgument, match=r"'layers\[0:2\]' is not of the form PATTERN=DEVICE; write e\.g\. \"layers"
    ):
        parse_place("layers[0:2]")


def test_the_context_fits_where_layers_and_weights_go():
    # a: embedding, output and a layer are 1,099,904 bytes; b: four layers are 2,723,968; 80 % of the rest is for keys
    assert fitted(a=2_500_000, b=8_000_000).max_model_len == 1024  # no device could hold the 3.87 MB of a and b
    assert fitted(a=1_500_000, b=8_000_000).num_blocks == 19  # 320,076 bytes are 312 tokens
    assert fitted(a=1_500_000, b=3_500_000).num_blocks == 9  # 620,825 bytes are 151 tokens of four layers
    assert fitted(b=3_500_000).max_model_len == 144
    assert fitted().limited_by == "the model's limit"


def test_a_device_that_is_too_small_for_its_share_is_named():
    with pytest.raises(OutOfMemory, match=r"GB can be used on b; ask for at most 144 tokens"):
        fitted(512, a=2_500_000, b=3_500_000)
    with pytest.raises(OutOfMemory, match=r"GB can be used on a; free some memory, or place fewer layers on a"):
        fitted(a=1_000_000, b=8_000_000)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "layers[1:]=cpuu",
            r"placement 'layers\[1:\]=cpuu': there is no backend 'cpuu'; did you mean 'cpu'\?; installed: ",
        ),
        ("lyers[2:]=host", r"placement 'lyers\[2:\]=host' selects nothing: the nodes are embed_tokens, layers"),
        ("layers[0:3]=host,layers[2:]=cpu", "both take layers.2; slices must not overlap"),
    ],
)
def test_places_that_can_hardly_be_meant_are_refused_at_load(place: str, message: str):
    with pytest.raises(InvalidArgument, match=message):
        LLM(backend="cpu", place=place)


def test_nodes_of_sampling_can_be_placed():
    with LLM(backend="cpu", place="sample=host,layers[4:]=host", max_num_seqs=1) as llm:
        assert len(llm.generate("Hello", SamplingParams(max_tokens=2, ignore_eos=True)).token_ids) == 2  # type: ignore[union-attr]
