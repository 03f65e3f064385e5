"""The actors of one run under Ray: who gets which shard, and what follows when one dies."""

import sys
import time
from collections import Counter, defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit.devices import Device
from deploykit.errors import DeploykitError, RunError
from deploykit.plan import Shard
from deploykit.runs.commit import part_name
from deploykit.runs.feed import writing
from runners.engines.local import rebuilt
from runners.engines.ray_rank import Home, RayRank
from runners.engines.setting import Setting
from runners.engines.shipping import packed_bytes
from runners.engines.work import Outcome, Work
from runners.pipeline.timing import Meter
from runners.ranks.assignment import Assignment
from runners.ranks.pace import Load, should_take
from runners.ranks.process import log_ending

__all__ = ["Cast"]

TICK_S = 0.1
AHEAD = 2
"""Shards that a rank has at a time: while one is predicted, the next one is read."""

TRIES = 3
"""A shard may be what kills the ranks: after so many deaths it is left for the message."""

PATIENCE_S = 300.0
LEAVE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What an actor was asked: ``ready``, ``compute`` with a shard, or ``end``."""

    what: str
    rank: int
    actor: Any
    shard: Shard | None = None


class Cast:
    """The actors of one run. The shards of a dead one go to the others, and a new one takes its place somewhere.

    What a dead one has committed on its machine and not sent to the store, where all share no more than that, goes to
    the others, too.
    """

    def __init__(self, ray: Any, setting: Setting, work: Work) -> None:
        self._ray, self._work, self._exchange = ray, work, setting.exchange
        self._packed = ray.put(packed_bytes(work.artifact))
        self._home = Home(
            began=time.time() - (time.monotonic() - setting.began_s),
            folder=str(Path.cwd()),
            path=[entry or str(Path.cwd()) for entry in sys.path],
            digest=work.artifact.digest,
        )
        self._waiting = deque(work.shards)
        self._actors: dict[int, Any] = {}
        self._ready: dict[int, float] = {}
        self._rows: Counter[int] = Counter()
        self._calls: dict[Any, _Call] = {}
        self._tries: Counter[int] = Counter()
        self._barren: Counter[int] = Counter()
        self._told: defaultdict[int, list[Shard]] = defaultdict(list)
        self._done = work.done
        self._meters: dict[int, Meter] = {}
        self._deaths: list[str] = []
        self._error: DeploykitError | None = None
        self._failed: set[int] = set()
        self._noted: set[int] = set()

    def run(self) -> Outcome:
        """Have the shards computed; how the ranks fared.

        Raises:
            DeploykitError: the error that a rank reported, or no rank could be placed.
        """
        with writing(self._work.logs):
            self._work.logs.mkdir(exist_ok=True)
        idle_since = time.monotonic()
        try:
            for assignment in self._work.assignments:
                self._start(assignment)
            while self._hand_out() and not self._work.stop.abandoning:
                answered, _ = self._ray.wait(list(self._calls), timeout=TICK_S)
                for answer in answered:
                    self._take(answer)
                if self._work.stop.finishing:
                    self._waiting.clear()
                self._work.progress.update(self._done)
                if any(call.what != "ready" for call in self._calls.values()):
                    idle_since = time.monotonic()
                self._refuse_to_wait(time.monotonic() - idle_since)
            self._dismiss()
        finally:
            for actor in self._actors.values():
                self._ray.kill(actor)
        if self._error is not None:
            raise self._error
        if self._work.stop.finishing:
            self._exchange.look()  # Else it is done at the end, where a store that does not answer is an error.
        if not self._work.stop.abandoning:
            # A rank that was not ready before all was done has computed nothing; it is none that died.
            late = self._actors.keys() - self._meters.keys() - self._barren.keys()
            self._meters |= {rank: Meter(origin_s=self._work.assignments[rank].origin_s) for rank in late}
        return Outcome(meters=self._meters, deaths=tuple(self._deaths))

    def _dismiss(self) -> None:
        """Have those that come late leave nothing on their machines; one that waits for room is not waited for."""
        if self._actors and not self._exchange.is_shared and not self._work.stop.abandoning:
            leaving = [actor.leave.remote() for actor in self._actors.values()]
            self._ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)

    def _start(self, assignment: Assignment) -> None:
        on_gpu = assignment.device.kind == "cuda"
        # Ray shows an actor its own GPU only, so that it is always number 0.
        here = replace(assignment, device=Device(kind="cuda")) if on_gpu else assignment
        remote = self._ray.remote(RayRank).options(
            num_cpus=assignment.threads, num_gpus=1 if on_gpu else 0, max_concurrency=AHEAD + 2
        )
        actor = remote.remote(here, self._home, self._packed)
        self._actors[assignment.rank] = actor
        self._calls[actor.ready.remote()] = _Call(what="ready", rank=assignment.rank, actor=actor)

    def _hand_out(self) -> bool:
        """Give every rank what it can take; says whether there is anything to wait for."""
        busy: Counter[int] = Counter()
        for call in self._calls.values():
            if call.shard is not None:
                busy[call.rank] += self._places(call.shard)
        for rank in sorted(self._ready) * AHEAD:
            has_place = self._waiting and busy[rank] + self._places(self._waiting[0]) <= AHEAD
            if has_place and self._should_take(rank):
                shard, actor = self._waiting.popleft(), self._actors[rank]
                busy[rank] += self._places(shard)
                self._calls[actor.compute.remote(shard)] = _Call(what="compute", rank=rank, actor=actor, shard=shard)
        # While a shard is in work, the death of its rank would bring it back for the others.
        if not self._waiting and not busy:
            for rank in sorted(self._ready):
                actor = self._actors[rank]
                self._calls[actor.end.remote()] = _Call(what="end", rank=rank, actor=actor)
            self._ready.clear()
            self._calls = {answer: call for answer, call in self._calls.items() if call.what == "end"}
        return bool(self._calls)

    def _should_take(self, rank: int) -> bool:
        """Near the end a slow rank comes away empty, so that nobody waits for it."""
        others = [self._load(other) for other in self._ready if other != rank]
        waiting_rows = sum(shard.rows for shard in self._waiting)
        return should_take(self._load(rank), others, self._waiting[0].rows, waiting_rows)

    def _load(self, rank: int) -> Load:
        """Of a shard in work all rows count: how far it is only the rank knows, and so nothing is said of silence."""
        shards = [call.shard for call in self._calls.values() if call.rank == rank and call.shard is not None]
        rows = sum(shard.rows for shard in shards)
        working_s = time.monotonic() - self._ready[rank]
        return Load(rows=rows, rate=self._rows[rank] / working_s if working_s else 0.0)

    def _places(self, shard: Shard) -> int:
        """A shard that was in work when a rank died is given out alone, so that it takes no other one with it again."""
        return AHEAD if self._tries[shard.index] else 1

    def _take(self, answered: Any) -> None:
        call = self._calls.pop(answered)
        try:
            answer: dict[str, Any] = self._ray.get(answered)
        except self._ray.exceptions.RayError as error:
            self._bury(call, error)
            return
        rank = call.rank
        if "error" in answer:
            failure = rebuilt(answer["error"])
            if call.what == "ready" and rank in self._rows and isinstance(failure, RunError):
                self._bury(call, failure)  # The one before it was ready: a store that does not answer may do so later.
            else:
                self._fail(rank, failure)
        elif call.what == "ready":
            self._ready[rank], self._rows[rank] = time.monotonic(), 0
        elif call.shard is not None:
            self._told[rank].append(call.shard)
            self._rows[rank] += call.shard.rows
            self._done += call.shard.rows
            self._note(rank, answer["note"])
            if self._actors.get(rank) is not call.actor:
                self._regain(rank)  # It said so before it died, and is heard now.
        else:
            self._meters[rank] = Meter.from_json(answer["meter"])
            # Should another one die now, its successor needs the room.
            self._ray.kill(self._actors.pop(rank))

    def _note(self, rank: int, note: str) -> None:
        """Its own words stay on its machine, and all that it computes there is of no use while it cannot be sent."""
        if note and rank not in self._noted:
            self._noted.add(rank)
            self._work.progress.say(f"warning: {note}. The rank goes on, and tries again")

    def _fail(self, rank: int, error: DeploykitError) -> None:
        """The first error ends the run; another one may say where that lies which its rank could not send."""
        self._waiting.clear()
        self._ready.pop(rank, None)
        if self._error is None:
            self._error = error
        elif rank not in self._failed:
            self._work.progress.say(f"warning: rank {rank} failed, too: {error}")
        self._failed.add(rank)

    def _bury(self, call: _Call, error: Exception) -> None:
        if call.shard is not None:
            self._tries[call.shard.index] += 1
            if self._tries[call.shard.index] < TRIES and self._goes_on():
                self._waiting.appendleft(call.shard)
        rank = call.rank
        if self._actors.get(rank) is not call.actor:
            return  # It is buried already; all its calls fail, and another one may have taken its place.
        del self._actors[rank]
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(call.actor)
        self._ready.pop(rank, None)
        self._regain(rank)
        said = " ".join(str(error).split())[:300]
        died = f"rank {rank} on {self._work.assignments[rank].device} died, {said}"
        self._deaths.append(f"{died}; {log_ending(self._work.logs / f'rank-{rank}.log')}")
        self._barren[rank] += 1
        has_work = self._waiting or any(call.shard is not None for call in self._calls.values())
        if is_replaced := bool(has_work) and self._goes_on() and self._barren[rank] < TRIES:
            self._start(self._work.assignments[rank])
        follows = "; a new one takes its place where there is room" if is_replaced else ""
        self._work.progress.say(f"warning: {died}{follows}")

    def _regain(self, rank: int) -> None:
        """Give out again what a dead rank said that it had committed, and what is not there."""
        log = self._work.logs / f"rank-{rank}.log"
        self._exchange.look(also=[f"{log.parent.name}/{log.name}"])
        told, commits = self._told.pop(rank, []), self._work.logs.with_name("commits")
        lost = [shard for shard in told if not (commits / f"{part_name(shard.index)}.json").exists()]
        if len(lost) < len(told):
            self._barren[rank] = 0
        self._done -= sum(shard.rows for shard in lost)
        if self._goes_on():
            self._waiting.extendleft(reversed(lost))

    def _goes_on(self) -> bool:
        """Whether shards are still given out."""
        return self._error is None and not self._work.stop.finishing

    def _refuse_to_wait(self, idle_s: float) -> None:
        if idle_s > PATIENCE_S:
            raise RunError(
                f"engine ray: no rank could be placed for {PATIENCE_S:g} s; the cluster offers "
                f"{self._ray.available_resources()}; free some of it or add machines, and give the same command again"
            )
