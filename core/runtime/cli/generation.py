"""One conversation at the terminal or in a pipe: streaming, interruption, timing."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from runtime.cli.output import EXIT_INTERRUPTED, emit, report_error, status
from runtime.engine.llm import LLM
from runtime.engine.prompts import Message
from runtime.engine.request import RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import InvalidArgument, RuntimeFault

HELP = "/clear forgets the conversation, /exit leaves; Ctrl-C stops an answer, Ctrl-C at the prompt leaves"


@dataclass
class Timing:
    """Times of one answer; `ttft_s` runs from the request to the first token."""

    num_prompt_tokens: int
    num_output_tokens: int = 0
    ttft_s: float = 0.0
    e2e_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Rate of the tokens after the first; None where there are fewer than two."""
        decode_s = self.e2e_s - self.ttft_s
        return (self.num_output_tokens - 1) / decode_s if self.num_output_tokens > 1 and decode_s > 0 else None

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Rate at which the prompt was processed, the first token included."""
        return self.num_prompt_tokens / self.ttft_s if self.ttft_s > 0 else None

    def describe(self) -> str:
        """One line for a person."""
        rate = self.tokens_per_s
        prompt_rate = self.prompt_tokens_per_s
        parts = [f"prompt {self.num_prompt_tokens} tokens" + (f", {prompt_rate:.1f} tokens/s" if prompt_rate else "")]
        parts.append(f"output {self.num_output_tokens} tokens" + (f", {rate:.1f} tokens/s" if rate else ""))
        return " · ".join([*parts, f"first token after {self.ttft_s:.3f} s, all after {self.e2e_s:.3f} s"])


class Interrupt:
    """Ctrl-C: the first one stops the answer, a second one leaves by KeyboardInterrupt.

    While tokens come, the first one only sets `requested`, so that the step under way ends well. Before the first
    token, a long prompt may take many steps without a chance to look at the flag: then it raises at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.is_streaming = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        is_second = self.requested
        self.requested = True
        if is_second or not self.is_streaming:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Catch Ctrl-C for the duration of one answer."""
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


class Session:
    """Answers prompts one after another and remembers the conversation."""

    def __init__(
        self, llm: LLM, params: SamplingParams, *, system: str | None, raw: bool, as_json: bool, verbose: bool
    ) -> None:
        self.llm = llm
        self.params = params
        self.raw = raw or (not llm.has_chat_template and system is None)
        self.as_json = as_json
        self.verbose = verbose
        self._first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[Message] = list(self._first)

    def answer(self, text: str) -> int:
        """Answer one prompt; returns the exit code."""
        prompt: str | Sequence[Message] = text
        if not self.raw:
            prompt = [*self._messages, {"role": "user", "content": text}]
        _, interrupted = self._generate(prompt)
        return EXIT_INTERRUPTED if interrupted else 0

    def chat(self) -> int:
        """Talk until the person leaves; returns the exit code."""
        if not self.llm.has_chat_template:
            raise InvalidArgument(
                "this model has no chat template, so there is nothing to chat with",
                remedy="give a template with --chat-template, or a prompt to continue",
            )
        if self.raw:
            raise InvalidArgument(
                "--raw continues a prompt, and there is none", remedy="give a prompt, or leave it out"
            )
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401  (gives input() line editing and history)
        status(HELP)
        while True:
            try:
                text = _ask()
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return 0
            except UnicodeDecodeError as error:
                status(f"that was not UTF-8: {error.reason} at byte {error.start}")
                continue
            command = text.strip()
            if command in ("/exit", "/quit"):
                return 0
            if command == "/clear":
                self._messages = list(self._first)
                status("the conversation is forgotten")
            elif command in ("/help", "/?"):
                status(HELP)
            elif command.startswith("/"):
                status(f"{command.split()[0]} is no command. {HELP}")
            elif command:
                self._turn(text)

    def _turn(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            reply, _ = self._generate(self._messages)
        except RuntimeFault as error:
            self._messages.pop()
            report_error(error, as_json=False)
            return
        self._messages.append({"role": "assistant", "content": reply})

    def _generate(self, prompt: str | Sequence[Message]) -> tuple[str, bool]:
        """Stream one answer; returns its text and whether it was interrupted."""
        token_ids = self._token_ids(prompt)
        timing = Timing(len(token_ids))
        started = time.perf_counter()
        pieces: list[str] = []
        finish_reason = seed = None
        with interruptible() as interrupt, contextlib.closing(self.llm.stream(token_ids, self.params)) as outputs:
            try:
                for output in outputs:
                    interrupt.is_streaming = True
                    if not timing.num_output_tokens:
                        timing.ttft_s = time.perf_counter() - started
                    timing.num_output_tokens += len(output.token_ids)
                    pieces.append(output.text)
                    self._show(output)
                    finish_reason, seed = output.finish_reason, output.seed
                    if interrupt.requested:
                        break
            except KeyboardInterrupt:
                if interrupt.is_streaming:
                    raise
            interrupted = interrupt.requested
        timing.e2e_s = time.perf_counter() - started
        text = "".join(pieces)
        self._finish(timing, text, finish_reason or "aborted", seed, interrupted)
        return text, interrupted

    def _token_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self.llm.tokenizer.encode(prompt)
        return self.llm.tokenizer.encode_chat(self.llm.render_chat(prompt))

    def _show(self, output: RequestOutput) -> None:
        if not self.as_json:
            print(output.text, end="", flush=True)
            return
        event: dict[str, Any] = {"event": "token", "text": output.text, "token_ids": list(output.token_ids)}
        if output.logprobs is not None:
            event["logprobs"] = [asdict(p) for p in output.logprobs]
        emit(event)

    def _finish(self, timing: Timing, text: str, finish_reason: str, seed: int | None, interrupted: bool) -> None:
        if self.as_json:
            emit(
                {
                    "event": "end",
                    "finish_reason": finish_reason,
                    "seed": seed,
                    **asdict(timing),
                    "tokens_per_s": timing.tokens_per_s,
                    "prompt_tokens_per_s": timing.prompt_tokens_per_s,
                }
            )
            return
        if not text.endswith("\n"):
            print(flush=True)
        if interrupted:
            status("[stopped]")
        if self.verbose:
            status(timing.describe())


def _ask() -> str:
    """One line from the person. The prompt stays off a stdout that leads elsewhere."""
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()
