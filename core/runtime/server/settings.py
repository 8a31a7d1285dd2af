"""What an operator may ask of the server; what concerns the model is in the engine's own configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from runtime.errors import InvalidArgument

LogFormat = Literal["text", "json"]
DEFAULT_PORT = 8080


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server.

    host, port         where to listen; port 0 takes a free one, which the ready line tells
    uds                path of a unix socket to listen on instead
    api_keys           any of them opens every route; none: no key is asked for. Each key is a tenant of its own.
    model_names        names that requests may use; the first one is in the answers
    cors_origins       origins whose pages may call; "*" is any, "localhost" is this machine on any port
    ssl_certfile       certificate chain (PEM); with it the server speaks TLS only
    ssl_keyfile        private key (PEM), where the certificate's file does not hold it
    drain_timeout_s    how long running requests may go on after SIGTERM
    request_timeout_s  most seconds for one request, queueing included; None: no limit
    max_body_bytes     longest body of a request
    ping_s             a silent stream sends a comment after so many seconds, so that proxies keep it open
    log_requests       one line per request on stderr, without texts; probes and metrics only where they fail
    log_prompts        folder for the texts of requests and answers, as JSON lines by day: whoever reads it reads all
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ("default",)
    cors_origins: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    drain_timeout_s: float = 30.0
    request_timeout_s: float | None = None
    max_body_bytes: int = 32 * 1024 * 1024
    ping_s: float = 15.0
    log_requests: LogFormat | None = None
    log_prompts: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidArgument(f"port = {self.port}: it must be in 0 .. 65535 (0 takes a free one)")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise InvalidArgument("a TLS key was given without its certificate", remedy="add --ssl-certfile")
        if any(not key.strip() for key in self.api_keys):
            raise InvalidArgument("an API key is empty", remedy="give a key, or leave the option out")
        if any(not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise InvalidArgument("an API key holds what no header can carry", remedy="use printable ASCII characters")
        if not self.model_names or any(not name for name in self.model_names):
            raise InvalidArgument("the served model name is empty", remedy="give one with --served-model-name")
        if not (math.isfinite(self.drain_timeout_s) and self.drain_timeout_s >= 0):
            raise InvalidArgument(f"drain_timeout_s = {self.drain_timeout_s}: it must be 0 or more seconds")
        for name in ("request_timeout_s", "max_body_bytes", "ping_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgument(f"{name} = {value}: it must be positive")
