"""Runs L3: groups of worker processes, and caches that go from one backend to another."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backend import Manifest, Numerics, OneOf
from runtime_conformance.case import Case
from runtime_conformance.device.collective import FAIL_WITHIN_S, is_judged, plan
from runtime_conformance.device.handover import HANDOVERS
from runtime_conformance.process.pool import Worker, WorkerCrashed, WorkerHung
from runtime_conformance.target import OPEN_TIMEOUT_S, Target
from runtime_conformance.verdict import Row, Verdict, spoken

if TYPE_CHECKING:
    from runtime_conformance.runner import Options

KILL_AFTER_S = 1.0
"""When a rank is killed, the others wait in a collective."""
_MAX_RANKS = 3
Answer = tuple[dict[str, Any], list[Any]]


def run_scale(target: Target, manifest: Manifest, options: Options) -> Iterator[Row]:
    """One row per collective, per failure that a group must survive, and per way that a cache may go."""
    group = Group(target, manifest, options)
    try:
        for name, (case, world) in plan(_formats(manifest)).items():
            row = _row(name)
            started = time.perf_counter()
            group.run(row, name, case, world)
            row.seconds = time.perf_counter() - started
            yield row
            if row.verdict is Verdict.UNSUPPORTED_REQUIRED:
                break  # no communicator: one row says so
        for name in HANDOVERS:
            row = _row(name)
            started = time.perf_counter()
            group.hand_over(row, name)
            row.seconds = time.perf_counter() - started
            yield row
    finally:
        group.close()


def verdict_on_death(target: Target, manifest: Manifest, options: Options, fail_within_s: float) -> Row:
    """What becomes of a group of which one rank is killed."""
    group, name = Group(target, manifest, options, fail_within_s), "a_dead_peer_is_noticed"
    row = _row(name)
    try:
        group.run(row, name, *plan(("f32",))[name])
    finally:
        group.close()
    return row


def _row(name: str) -> Row:
    return Row(f"scale/{name}", "scale", "L3", Verdict.PASS, spoken(name), required=True)


def _formats(manifest: Manifest) -> tuple[str, ...]:
    """Formats of activations that products take."""
    found = {"f32": None}
    for rule in manifest.rules:
        if rule.op == "linear@1":
            for condition in rule.when:
                if isinstance(condition, OneOf) and condition.fact == "x.format":
                    found |= dict.fromkeys(v for v in condition.values if v in ("f16", "bf16"))
    return tuple(found)


class Group:
    """Workers for ranks, and a judge. `fail_within_s` is how long a rank may take to see that another is dead."""

    def __init__(
        self, target: Target, manifest: Manifest, options: Options, fail_within_s: float = FAIL_WITHIN_S
    ) -> None:
        self._fail_within_s = fail_within_s
        self._manifest, self._options = manifest, options
        self._ranks = [target.worker() for _ in range(_MAX_RANKS)]
        self._judge = Worker({"role": "judge"})
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="runtime-", dir=memory if memory.is_dir() else None))

    def close(self) -> None:
        """End all processes."""
        for worker in (*self._ranks, self._judge):
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, row: Row, name: str, case: Case, world: int) -> None:
        """Ask all ranks at once, each in a thread of its own, and judge what they have afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        addresses = [str(folder / f"rank{rank}") for rank in range(world)]
        question = {"do": "collective", "name": name, "case": case.to_json(), "seed": self._options.seed}
        question |= {"group": addresses, "fail_within_s": self._fail_within_s}
        answers: list[Answer | None] = [None] * world
        killed = world - 1 if name == "a_dead_peer_is_noticed" else None

        def ask(rank: int) -> None:
            answers[rank] = self._ask(self._ranks[rank], {**question, "rank": rank})
            if rank == killed:
                time.sleep(KILL_AFTER_S)
                self._ranks[rank].close()

        threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._decide(row, name, case, [a for a in answers if a is not None])

    def _ask(self, worker: Worker, question: dict[str, Any], blobs: Sequence[Any] = ()) -> Answer:
        limit = self._options.timeout_s + OPEN_TIMEOUT_S
        try:
            return worker.ask(question, blobs, timeout_s=limit)
        except WorkerCrashed as event:
            return {"verdict": Verdict.CRASH.value, "error": str(event)}, []
        except WorkerHung as event:
            return {"verdict": Verdict.HANG.value, "error": str(event)}, []

    def _decide(self, row: Row, name: str, case: Case, answers: list[Answer]) -> None:
        for rank, (answer, _) in enumerate(answers):
            if answer.get("missing"):
                is_all = "communicator" in answer["missing"]
                row.verdict = Verdict.UNSUPPORTED_REQUIRED if is_all else Verdict.VACUOUS
                row.detail = answer["missing"]
                return
            if answer.get("error") or answer.get("failure"):
                row.verdict = Verdict(answer.get("verdict", "FAIL"))
                row.detail = f"rank {rank}: {answer.get('error') or answer['failure']}"
                return
        if not is_judged(name):
            return
        made = [blobs[0] for _, blobs in answers]
        runs = [[blob] for blob in made] if case.op == "swiglu_ffn@1" else [made]
        question = {"do": "judge", "case": case.to_json(), "seed": self._options.seed, "num_outputs": len(runs[0])}
        numerics = self._numerics(case)
        judged, _ = self._ask(self._judge, {**question, "numerics": asdict(numerics)}, [b for run in runs for b in run])
        row.numerics = asdict(numerics)
        self._note(row, judged)

    def _note(self, row: Row, judged: dict[str, Any]) -> None:
        if "error" in judged:
            row.verdict, row.detail = Verdict.SUITE_ERROR, f"the judge failed: {judged['error']}"
        elif judged["reasons"]:
            row.verdict, row.detail = Verdict.FAIL, "; ".join(judged["reasons"])
        row.figures = judged.get("figures", {})

    def _numerics(self, case: Case) -> Numerics:
        """Of a collective: its tensor's own; of a network in parts: those of its products."""
        if case.op != "swiglu_ffn@1":
            fmt = case.inputs["x0"].format
            return Numerics(activation=fmt, accumulate="f32", output=fmt)
        return next((r.numerics for r in self._manifest.rules if r.op == "linear@1"), Numerics())

    def hand_over(self, row: Row, name: str) -> None:
        """The cache of a prompt is computed by one side; the other continues."""
        layout = self._manifest.kv_layouts[0] if self._manifest.kv_layouts else None
        common: dict[str, Any] = {"seed": self._options.seed, "block_size": layout.block_sizes[0] if layout else 16}
        common |= {"kv_format": layout.formats[0] if layout else "f16"}
        common |= {"numerics": [asdict(n) for n in dict.fromkeys(r.numerics for r in self._manifest.rules)]}
        goes_out = name == HANDOVERS[0]
        first, second = (self._ranks[0], self._judge) if goes_out else (self._judge, self._ranks[0])
        answer, caches = self._ask(first, {"do": "give", **common})
        if not (answer.get("error") or answer.get("missing")):
            answer, logits = self._ask(second, {"do": "take", **common}, caches)
        if answer.get("missing"):
            row.verdict, row.detail = Verdict.VACUOUS, answer["missing"]
        elif answer.get("error"):
            row.verdict, row.detail = Verdict(answer.get("verdict", "FAIL")), answer["error"]
        else:
            question = {"do": "judge_program", "shape": answer["shape"], "first": 1, **common}
            self._note(row, self._ask(self._judge, question, logits)[0])
