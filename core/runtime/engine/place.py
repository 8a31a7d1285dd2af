"""What `--place` asks for: rules "pattern=device", the devices that they name, and whether they can be meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from runtime.engine.sampling_graph import SamplingVariant, build_sampling_graph
from runtime.errors import InvalidArgument, PluginRejected
from runtime.executor import Plan, check_rules
from runtime.registry import Choice, Discovery, choose

T = TypeVar("T")
HOST = "host"
EXAMPLE = '"layers[0:8]=cuda,layers[8:]=cpu"'


def parse_place(text: str | None) -> list[tuple[str, str]]:
    """`pattern=device,pattern=device` -> pairs; raises InvalidArgument where an entry is not of that form.

    The first device of a backend is called as the backend: "cuda:0" is "cuda".
    """
    pairs = []
    for entry in (text or "").split(","):
        if not entry.strip():
            continue
        pattern, _, device = entry.partition("=")
        if not pattern.strip() or not device.strip():
            raise InvalidArgument(
                f"place = {text!r}: '{entry}' is not of the form PATTERN=DEVICE", remedy=f"write e.g. {EXAMPLE}"
            )
        pairs.append((pattern.strip(), device.strip().removesuffix(":0")))
    return pairs


def device_name(choice: Choice) -> str:
    """The device as `--place` and the plan call it: "cpu", or "acme:1" for another than the first."""
    return choice.backend.name if choice.device.index == 0 else f"{choice.backend.name}:{choice.device.index}"


def placed_elsewhere(discovery: Discovery, choice: Choice, place: str | None) -> list[Choice]:
    """The devices that `place` names beside the chosen one and the host, each once; raises as `choose`."""
    return list(named_devices(place, device_name(choice), lambda name: choose(discovery, name)).values())


def named_devices(place: str | None, chosen: str, find: Callable[[str], T]) -> dict[str, T]:
    """What `find` makes of the devices in `place`, without `chosen` and the host, each once.

    Errors of `find`, which say that there is no such device or that it cannot run here, are told with the rule.
    """
    found: dict[str, T] = {}
    for pattern, name in parse_place(place):
        if name not in (HOST, chosen, *found):
            try:
                found[name] = find(name)
            except (InvalidArgument, PluginRejected) as error:
                raise type(error)(f"placement '{pattern}={name}': {error.message}", remedy=error.remedy) from error
    return found


def check_place(rules: Sequence[tuple[str, str]], step: Plan, vocab_size: int) -> None:
    """Raise InvalidArgument for rules that select nothing of the step or of sampling, overlap, or leave a gap."""
    names = [placed.node.name for placed in step.placements.by_node]
    for is_random in (False, True):
        variant = SamplingVariant(penalties=True, random=is_random, num_logprobs=1)
        sampling = build_sampling_graph(vocab_size, variant, max_num_seqs=1, max_model_len=1)
        names += [node.name for node in sampling.nodes]
    check_rules(rules, list(dict.fromkeys(names)))
