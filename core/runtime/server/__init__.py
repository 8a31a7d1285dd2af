"""The OpenAI-compatible HTTP server: protocol, routes, streams, metrics, life and death. Needs the extra `serve`."""

from __future__ import annotations

from runtime import __version__

FINGERPRINT = f"hal-runtime-{__version__}"
"""Tells clients when answers may change although the seed does not."""
