"""Finds backends by entry point, sets the broken ones aside with a reason, probes the others and chooses one."""

from runtime.registry.choice import Choice, Refusal, choose
from runtime.registry.discovery import Discovery, LoadedBackend, discover
from runtime.registry.entry_points import Progress, Rejected, load_each, origin
from runtime.registry.probing import ProbeResult, probe_all
from runtime.registry.validation import describe_error, suggest, vendor_code
from runtime.registry.verification import Verification, Verifications

__all__ = [
    "Choice",
    "Discovery",
    "LoadedBackend",
    "ProbeResult",
    "Progress",
    "Refusal",
    "Rejected",
    "Verification",
    "Verifications",
    "choose",
    "describe_error",
    "discover",
    "load_each",
    "origin",
    "probe_all",
    "suggest",
    "vendor_code",
]
