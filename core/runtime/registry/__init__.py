"""Finds backends by entry point, sets the broken ones aside with a reason, probes the others and chooses one."""

from runtime.registry.choice import Choice, Refusal, choose
from runtime.registry.discovery import Discovery, LoadedBackend, Rejected, discover, installed, origin
from runtime.registry.probing import ProbeResult, probe_all
from runtime.registry.validation import describe_error, suggest, vendor_code
from runtime.registry.verification import Verification, Verifications

__all__ = [
    "Choice",
    "Discovery",
    "LoadedBackend",
    "ProbeResult",
    "Refusal",
    "Rejected",
    "Verification",
    "Verifications",
    "choose",
    "describe_error",
    "discover",
    "installed",
    "origin",
    "probe_all",
    "suggest",
    "vendor_code",
]
