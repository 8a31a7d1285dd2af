"""The OpenAI-compatible HTTP server: protocol, routes, streams, metrics, life and death. Needs the extra `serve`."""

from __future__ import annotations
