"""One request to an OpenAI endpoint, streamed, with the time of every piece."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidArgument, Unsupported
from runtime.server.load.workload import Ask, Scale, Workload, words

if TYPE_CHECKING:
    import httpx

CALIBRATION_WORDS = (20, 120)


@dataclass
class Sample:
    """What one request experienced; times are seconds since the run began."""

    start: float
    pieces: list[float] = field(default_factory=list)
    """When each piece of text arrived."""
    end: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to the first piece."""
        return self.pieces[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """Times between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:])]


class Client:
    """Sends requests to `base_url` (such as http://127.0.0.1:8000/v1). Use as an async context manager."""

    def __init__(
        self, base_url: str, *, model: str | None = None, api_key: str | None = None, timeout_s: float = 600.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient

    async def __aenter__(self) -> Client:
        try:
            import httpx
        except ImportError as error:
            raise Unsupported(
                f"load on a server needs the package httpx ({error})", remedy="pip install 'hal-runtime[serve]'"
            ) from error
        # A connection per request: one that the server closes while it is idle would fail the next request.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, limits=limits, trust_env=False)
        if self.model is None:
            self.model = await self._first_model()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._http.aclose()

    async def calibrate(self, workload: Workload) -> Scale:
        """Measure how many tokens the server makes of text, from the `usage` of two short requests."""
        import random

        counts = []
        for n in CALIBRATION_WORDS:
            body = self._body(workload, Ask(" ".join(words(random.Random(n), n)), 1), stream=False)
            response = await self._post(workload, body)
            usage = response.get("usage") or {}
            if not usage.get("prompt_tokens"):
                raise InvalidArgument(f"{self.base_url} reports no usage.prompt_tokens; lengths could not be chosen")
            counts.append(int(usage["prompt_tokens"]))
        per_word = (counts[1] - counts[0]) / (CALIBRATION_WORDS[1] - CALIBRATION_WORDS[0])
        if per_word <= 0:
            raise InvalidArgument(
                f"{self.base_url} counts {counts[0]} and {counts[1]} tokens for {CALIBRATION_WORDS[0]} and "
                f"{CALIBRATION_WORDS[1]} words; it does not tell the length of a prompt"
            )
        return Scale(counts[0] - per_word * CALIBRATION_WORDS[0], per_word)

    async def send(self, workload: Workload, ask: Ask, origin: float, sample: Sample | None = None) -> Sample:
        """Stream one answer into `sample`. What goes wrong is in the sample; nothing is raised."""
        import httpx

        sample = sample or Sample(0.0)
        sample.start = time.perf_counter() - origin
        body = self._body(workload, ask, stream=True)
        try:
            async with self._http.stream("POST", self._url(workload), json=body) as response:
                sample.status = response.status_code
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    sample.error = f"{response.status_code}: {text[:200]}"
                else:
                    async for line in response.aiter_lines():
                        _take(sample, line, time.perf_counter() - origin)
        except httpx.HTTPError as error:
            sample.error = f"{type(error).__name__}: {error}"
        sample.end = time.perf_counter() - origin
        if sample.error is None and not sample.pieces:
            sample.error = "the answer had no text"
        sample.completion_tokens = sample.completion_tokens or len(sample.pieces)
        return sample

    async def _first_model(self) -> str:
        import httpx

        try:
            response = await self._http.get(f"{self.base_url}/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise InvalidArgument(
                f"{self.base_url}/models does not answer with a model ({type(error).__name__}: {error})",
                remedy="check the address, which ends in /v1, and --api-key; or name the model with --model-name",
            ) from error

    async def _post(self, workload: Workload, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            response = await self._http.post(self._url(workload), json=body)
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise InvalidArgument(f"{self._url(workload)} refuses a short request: {error}") from error
        return answer

    def _url(self, workload: Workload) -> str:
        return f"{self.base_url}/" + ("completions" if workload.endpoint == "completions" else "chat/completions")

    def _body(self, workload: Workload, ask: Ask, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.output_tokens,
            "temperature": 0,
            "stream": stream,
        }
        if workload.endpoint == "completions":
            body["prompt"] = ask.prompt
        else:
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        if stream:
            body["stream_options"] = {"include_usage": True}
        if workload.ignore_eos:
            body["ignore_eos"] = True
        return body


def _take(sample: Sample, line: str, now: float) -> None:
    """Read one line of a server-sent event stream."""
    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
        return
    event = json.loads(line[5:])
    if "error" in event:
        sample.error = str(event["error"])[:200]
        return
    if event.get("usage"):
        usage = event["usage"]
        sample.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        sample.completion_tokens = int(usage.get("completion_tokens") or 0)
        sample.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        # An end with no text of its own is still a token: random weights make many that show nothing.
        if choice.get("text") or delta.get("content") or ("role" not in delta and choice.get("finish_reason") is None):
            sample.pieces.append(now)
