"""Decides which tokens the next step computes. It handles integers only."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from runtime.engine.blocks import BlockPool, chained_hash, root_hash
from runtime.engine.pace import SHORT_PROMPT, Budget, Pace
from runtime.engine.policy import FirstCome
from runtime.engine.request import FinishReason, Request, RequestState

_NOTHING = range(0)


@dataclass(frozen=True)
class Scheduled:
    """One request's part of a step: tokens at positions start .. start + num_scheduled_tokens - 1."""

    request: Request
    start: int
    num_scheduled_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the step computes the request's last token, so that the next one can be sampled."""
        return self.start + self.num_scheduled_tokens == self.request.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step gives the request a token."""
        return self.reaches_end and self.request.max_tokens > 0

    @property
    def scored(self) -> range:
        """Positions whose logits tell how probable the prompt's next token was, where that is wanted and not known."""
        request = self.request
        if request.params.prompt_logprobs is None:
            return _NOTHING
        stop = min(self.start + self.num_scheduled_tokens, request.num_prompt_tokens - 1)
        return range(max(self.start, request.num_scored_tokens - 1), stop)


@dataclass(frozen=True)
class Moved:
    """Blocks of a request on their way to the host's memory or back."""

    request: Request
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """One step: first blocks are moved out, then in, then copied, then the parts are computed, in this order of rows.

    num_decoding  the first so many parts are the one token of requests that decode
    block_copies  (source, target) block ids
    """

    parts: tuple[Scheduled, ...]
    num_decoding: int
    swap_out: tuple[Moved, ...] = ()
    swap_in: tuple[Moved, ...] = ()
    block_copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(p.num_scheduled_tokens for p in self.parts)


class Scheduler:
    """Shares steps among requests, and blocks of the KV cache.

    A step computes one token of every request that decodes; what `max_num_batched_tokens` and `pace` leave goes to
    prompts, which are cut into chunks. A request is admitted when there are blocks for all tokens that it has, less
    those that others have computed already; while it decodes it takes one more block at a time. When there is none,
    the last request by the policy is preempted: it gives its blocks back and goes on later from its tokens.

    can_copy_blocks  the further samples of a prompt copy its last block instead of computing part of it again
    num_swap_blocks  blocks of preempted requests that the host's memory can take
    max_num_logits   rows of logits that a step can give; each request needs one, a prompt to be scored one per token
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        *,
        policy: FirstCome | None = None,
        pace: Pace | None = None,
        enable_prefix_caching: bool = False,
        can_copy_blocks: bool = False,
        num_swap_blocks: int = 0,
        max_num_logits: int | None = None,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.policy = policy or FirstCome()
        self.pace = pace or Pace(threshold=0)
        self.enable_prefix_caching = enable_prefix_caching
        self.can_copy_blocks = can_copy_blocks
        self.num_free_swap_blocks = num_swap_blocks
        self.max_num_logits = max_num_logits or max_num_seqs
        self.waiting: list[Request] = []
        """In the order of arrival, preempted requests among them."""
        self.running: list[Request] = []
        """Best first: blocks are taken from the end."""
        self.num_reserved_blocks = 0
        """Free blocks that are kept for work beside the requests."""
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._num_arrived = 0
        self._spare_logits = 0
        self._computing: dict[bytes, Request] = {}
        self._swap_out: list[Moved] = []
        self._swap_in: list[Moved] = []
        self._copies: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        request.arrival = self._num_arrived
        self._num_arrived += 1
        self.policy.arrived(request)
        self.waiting.append(request)

    def schedule(self) -> Schedule:
        """Find blocks for those that decode, share the step's tokens out, and admit what fits."""
        self._grow_tables()
        parts, prompts = [], []
        for request in self.running:
            if request.num_tokens - request.num_computed_tokens == 1:
                parts.append(Scheduled(request, request.num_computed_tokens, 1))
            else:
                prompts.append(request)
        arriving = min(len(self.waiting), self.max_num_seqs - len(self.running))
        self._spare_logits = self.max_num_logits - len(self.running) - arriving
        num_decoding = len(parts)
        most = self.max_num_batched_tokens - num_decoding
        budget = self.pace.budget(most, num_decoding, len(prompts) + arriving)
        for request in prompts:
            self._take_chunk(request, budget, parts)
        if budget.is_open and self.waiting and len(self.running) < self.max_num_seqs:
            self._admit(budget, parts)
        for part in parts:
            self.policy.computes(part.request, part.num_scheduled_tokens)
        schedule = Schedule(
            tuple(parts), num_decoding, tuple(self._swap_out), tuple(self._swap_in), tuple(self._copies)
        )
        self._swap_out, self._swap_in, self._copies = [], [], []
        return schedule

    def computed(self, part: Scheduled) -> None:
        """A step has computed `part`: its full blocks can be found by others from now on."""
        request, block_size = part.request, self.pool.block_size
        before = request.num_computed_tokens // block_size
        request.num_computed_tokens += part.num_scheduled_tokens
        after = request.num_computed_tokens // block_size
        if after > before and self.enable_prefix_caching:
            self._extend_hashes(request, after)
            for i in range(before, after):
                name = request.block_hashes[i]
                self.pool.register(request.block_table[i], name)
                if self._computing.get(name) is request:
                    del self._computing[name]

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state it is and take its blocks back; finishing twice is harmless."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
        else:
            del self.waiting[bisect_left(self.waiting, request.arrival, key=lambda r: r.arrival)]
        request.move_to(RequestState.FINISHED)
        request.finish_reason = reason
        self.num_free_swap_blocks += request.num_swapped_blocks
        request.num_swapped_blocks = 0
        self._release(request)
        self.policy.left(request)

    def _take_chunk(self, request: Request, budget: Budget, parts: list[Scheduled]) -> None:
        is_short = request.num_tokens - request.num_cached_tokens <= SHORT_PROMPT
        wanted = request.num_tokens - request.num_computed_tokens
        unscored = request.num_prompt_tokens - request.num_scored_tokens
        if unscored > 0:
            # Tokens before the first that is scored need no logits; of the others each takes a row.
            free = max(request.num_scored_tokens - 1 - request.num_computed_tokens, 0)
            wanted = min(wanted, free + 1 + self._spare_logits)
        count = budget.take(wanted, is_short=is_short)
        if unscored > 0:
            self._spare_logits -= max(count - free - 1, 0)
        if count > 0:
            parts.append(Scheduled(request, request.num_computed_tokens, count))

    # --- blocks of those that run

    def _grow_tables(self) -> None:
        i, block_size = 0, self.pool.block_size
        while i < len(self.running):
            request = self.running[i]
            i += 1
            if request.num_tokens <= len(request.block_table) * block_size:
                continue
            while not self.pool.num_free:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is request:
                    return
            request.block_table += self.pool.allocate(1)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        request.move_to(RequestState.PREEMPTED)
        used = self.pool.blocks_for(request.num_computed_tokens)
        if 0 < used <= self.num_free_swap_blocks:
            self.num_free_swap_blocks -= used
            request.num_swapped_blocks = used
            self._swap_out.append(Moved(request, tuple(request.block_table[:used])))
        else:
            request.num_computed_tokens = 0
        self._release(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.insert(bisect_left(self.waiting, request.arrival, key=lambda r: r.arrival), request)

    def _release(self, request: Request) -> None:
        self.pool.free(request.block_table)
        request.block_array = None
        for name in request.block_hashes:
            if self._computing.get(name) is request:
                del self._computing[name]

    # --- admission

    def _admit(self, budget: Budget, parts: list[Scheduled]) -> None:
        """Take requests from the queue while there are seats, tokens and blocks; the first without blocks ends it."""
        candidates = list(self.waiting)
        while candidates and budget.is_open and len(self.running) < self.max_num_seqs:
            request = self.policy.pick(candidates)
            candidates.remove(request)
            if self._is_held(request):
                continue
            if not self._take_blocks(request):
                break
            self.waiting.remove(request)
            self.policy.admitted(request, self.waiting)
            request.move_to(RequestState.RUNNING)
            self.running.append(request)
            self._take_chunk(request, budget, parts)
        self.running.sort(key=self.policy.key)

    def _is_held(self, request: Request) -> bool:
        """Whether somebody else is computing what the request begins with: waiting for it is cheaper."""
        leader = request.leader
        if leader is not None and leader.state is not RequestState.FINISHED and not request.num_preemptions:
            return leader.num_computed_tokens < leader.num_prompt_tokens
        if not self._may_reuse(request) or request.num_swapped_blocks:
            return False
        most = self._most_shared_blocks(request)
        self._extend_hashes(request, most)
        known = len(self.pool.find(request.block_hashes[:most]))
        return known < most and request.block_hashes[known] in self._computing

    def _take_blocks(self, request: Request) -> bool:
        pool = self.pool
        shared, copied = self._shared_blocks(request)
        needed = pool.blocks_for(request.num_tokens) - len(shared)
        # Everybody who runs can then take one more block: a resumed request is not preempted at once.
        if needed + pool.num_idle(shared) + len(self.running) + self.num_reserved_blocks > pool.num_free:
            return False
        pool.share(shared)
        request.block_table = shared + pool.allocate(needed)
        if request.num_swapped_blocks:
            self._swap_in.append(Moved(request, tuple(request.block_table[: request.num_swapped_blocks])))
            self.num_free_swap_blocks += request.num_swapped_blocks
            request.num_swapped_blocks = 0
            return True
        request.num_computed_tokens = len(shared) * pool.block_size
        if copied is not None:
            self._copies.append((copied, request.block_table[len(shared)]))
            request.num_computed_tokens = request.num_prompt_tokens - 1
        if not request.num_preemptions:
            request.num_cached_tokens = request.num_computed_tokens
            self.prefix_cache_queries += request.num_tokens
            self.prefix_cache_hits += request.num_computed_tokens
        if self.enable_prefix_caching:
            num_full = request.num_tokens // pool.block_size
            self._extend_hashes(request, num_full)
            for name in request.block_hashes[len(shared) : num_full]:
                self._computing.setdefault(name, request)
        return True

    def _shared_blocks(self, request: Request) -> tuple[list[int], int | None]:
        """Blocks that hold the beginning of the request already, and one whose content is worth a copy."""
        if request.num_swapped_blocks:
            return [], None
        leader, most = request.leader, self._most_shared_blocks(request)
        if leader is not None and leader.state is RequestState.RUNNING and not request.num_preemptions:
            return leader.block_table[:most], leader.block_table[most] if self.can_copy_blocks else None
        if not self._may_reuse(request):
            return [], None
        self._extend_hashes(request, most)
        return self.pool.find(request.block_hashes[:most]), None

    def _may_reuse(self, request: Request) -> bool:
        return self.enable_prefix_caching and not request.skip_reading_prefix_cache

    def _most_shared_blocks(self, request: Request) -> int:
        """At least the last token is computed, and every other whose logits are wanted."""
        unscored = request.num_prompt_tokens - request.num_scored_tokens
        most = request.num_tokens if unscored <= 0 else request.num_scored_tokens
        return (most - 1) // self.pool.block_size

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        hashes, block_size = request.block_hashes, self.pool.block_size
        if len(hashes) >= num_blocks:
            return
        parent = hashes[-1] if hashes else root_hash(request.cache_salt)
        token_ids = request.token_ids_at(len(hashes) * block_size, num_blocks * block_size)
        for start in range(0, len(token_ids), block_size):
            parent = chained_hash(parent, token_ids[start : start + block_size])
            hashes.append(parent)
