"""How many prompt tokens a step may take while others decode, so that a long prompt does not stall them."""

from __future__ import annotations

from dataclasses import dataclass

SHORT_PROMPT, SHORT_CHUNK = 256, 64
"""A prompt of at most so many tokens comes in chunks of at least so many: it is over after a few longer steps, where a
trickle would keep it, and the size of the batch, waiting."""
REFRESH_STEPS = 32
"""After so many steps with prompts, one without measures what decoding alone takes."""
_SHARE = 0.75
"""Of the time of decoding alone that prompts may take beside it: the estimate errs to both sides."""
_KEEP = 0.5
"""Share of the former mean in a new one: a few steps outweigh one that was disturbed."""
_NEAR = 0.25
"""What was measured with so many more or fewer requests stands for a batch, as a part of its size."""


@dataclass
class Budget:
    """Prompt tokens that a step can still take: in all, of long prompts, of short ones."""

    most: int
    for_long: int
    for_short: int

    @property
    def is_open(self) -> bool:
        """Whether any prompt can get a token."""
        return self.most > 0 and self.for_short > 0

    def take(self, wanted: int, *, is_short: bool) -> int:
        """As many as there are, up to `wanted`."""
        count = max(min(wanted, self.most, self.for_short if is_short else self.for_long), 0)
        self.most -= count
        self.for_long -= count
        self.for_short -= count
        return count


class Pace:
    """Limits prompt tokens per step by measured step times.

    While D requests decode and W prompts wait or are being computed, the prompt tokens of a step may take as long as
    its decoding alone, times W / D where more wait than decode. One long prompt thus at most doubles the time between
    two tokens of the others, and a crowd at the door is let in at its share of the time, as a batch that stays small
    would serve everybody slowly. See `SHORT_PROMPT` for prompts that are not worth it.

    Time is no line in the number of tokens: the first ones beside a small batch cost much, those that fill up a tile
    nothing. So the mean time per token of the last steps, decoded ones included, tells how many the next step can
    take, and it takes one more than that.

    A fixed `threshold` replaces all this; 0 sets no limit.
    """

    def __init__(self, threshold: int | None = None) -> None:
        self._threshold = threshold
        self._decode_s: dict[int, float] = {}
        self._token_s: float | None = None
        self._since_refresh = 0

    def budget(self, most: int, num_decoding: int, num_prompts: int) -> Budget:
        """What the next step may spend on prompts, `most` tokens at most."""
        limit = self.limit(num_decoding, num_prompts) if num_prompts else None
        if limit is None:
            return Budget(most, most, most)
        return Budget(most, limit, max(limit, SHORT_CHUNK) if limit and self._threshold is None else limit)

    def limit(self, num_decoding: int, num_prompts: int) -> int | None:
        """Most tokens of long prompts in the next step; None sets no limit, 0 lets it measure decoding alone."""
        if not num_decoding or self._threshold == 0:
            return None
        if self._threshold is not None:
            return self._threshold
        alone_s = self._decode_alone(num_decoding)
        if alone_s is None or self._since_refresh >= REFRESH_STEPS:
            self._since_refresh = 0
            return 0
        allowed_s = alone_s * (1 + _SHARE * max(1.0, num_prompts / num_decoding))
        token_s = self._token_s or alone_s / num_decoding
        return max(1, int(allowed_s / token_s) + 1 - num_decoding)

    def record(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if not num_prompt_tokens:
            before = self._decode_s.get(num_decoding, seconds)
            # Memory of the process is touched for the first time in the first steps: a shorter time is believed.
            self._decode_s[num_decoding] = seconds if seconds < before else _mean(before, seconds)
            self._since_refresh = 0
            return
        if num_decoding:
            self._since_refresh += 1
            each = seconds / (num_decoding + num_prompt_tokens)
            self._token_s = each if self._token_s is None else _mean(self._token_s, each)

    def _decode_alone(self, num_decoding: int) -> float | None:
        """Seconds of a step of so many requests without prompts, None where nothing near has been measured."""
        nearest = min(self._decode_s, key=lambda n: abs(n - num_decoding), default=0)
        return self._decode_s[nearest] if abs(nearest - num_decoding) <= _NEAR * num_decoding else None


def _mean(before: float, now: float) -> float:
    return _KEEP * before + (1 - _KEEP) * now
