"""How many prompt tokens a step may take while others decode, so that a long prompt does not stall them."""

from __future__ import annotations

REFRESH_STEPS = 32
"""After so many steps with prompts, one without measures what decoding alone takes."""
_KEEP = 0.75
"""Share of the former mean in a new one: a few steps outweigh one that was disturbed."""


class Pace:
    """Limits prompt tokens per step by measured step times.

    While D requests decode and W prompts wait or are being computed, the prompt tokens of a step may take as long as
    its decoding alone, times W / D where more wait than decode. One long prompt thus at most doubles the time between
    two tokens of the others, and a crowd at the door is let in at its share of the time, as a batch that stays small
    would serve everybody slowly.

    A fixed `threshold` replaces the measurement; 0 sets no limit.
    """

    def __init__(self, threshold: int | None = None) -> None:
        self._threshold = threshold
        self._decode_s: dict[int, float] = {}
        self._prompt_token_s: float | None = None
        self._since_refresh = 0

    def limit(self, num_decoding: int, num_prompts: int) -> int | None:
        """Most prompt tokens of the next step; None sets no limit."""
        if not num_decoding or self._threshold == 0:
            return None
        if self._threshold is not None:
            return self._threshold
        if self._since_refresh >= REFRESH_STEPS or not self._decode_s or self._prompt_token_s is None:
            self._since_refresh = 0
            # The first prompts of a process are computed before anything has been measured, without a limit; the next
            # steps measure decoding alone.
            return 0 if not self._decode_s or self._prompt_token_s is not None else None
        allowed_s = self._decode_alone(num_decoding) * max(1.0, num_prompts / num_decoding)
        return max(1, int(allowed_s / self._prompt_token_s))

    def record(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if not num_prompt_tokens:
            before = self._decode_s.get(num_decoding, seconds)
            # Memory of the process is touched for the first time in the first steps: a shorter time is believed.
            self._decode_s[num_decoding] = seconds if seconds < before else _mean(before, seconds)
            self._since_refresh = 0
            return
        beside = 0.0
        if num_decoding:
            self._since_refresh += 1
            if not self._decode_s:
                return
            beside = self._decode_alone(num_decoding)
        each = max(seconds - beside, seconds * 0.05) / num_prompt_tokens
        self._prompt_token_s = each if self._prompt_token_s is None else _mean(self._prompt_token_s, each)

    def _decode_alone(self, num_decoding: int) -> float:
        nearest = min(self._decode_s, key=lambda n: abs(n - num_decoding))
        return self._decode_s[nearest]


def _mean(before: float, now: float) -> float:
    return _KEEP * before + (1 - _KEEP) * now
