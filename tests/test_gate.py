"""The gate, on virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from math import inf, nextafter, ulp
from typing import Any

import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from handler.gate import ClientDisconnected, Gate, GateClosed, QueueFull, Turn, WaitTimeout
from tests.support.assertions import is_short, simultaneous
from tests.support.properties import given, st
from tests.support.virtual_time import TICK, VirtualTimeLoop, after_iterations, run

pytestmark = pytest.mark.virtual_time

SECONDS = 3.0
SOON = 1e-3
"""Virtual seconds within which everything that is ready has run."""


def connected() -> asyncio.Future[None]:
    """Return the `gone` of a client that does not disconnect."""
    return asyncio.get_running_loop().create_future()


class Harness:
    """A gate of `SECONDS` on the running loop's clock, and what its clients did."""

    def __init__(
        self,
        max_waiting: int = 1000,
        seconds: float = SECONDS,
        max_wait_seconds: float | None = None,
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.gate = Gate(seconds, max_waiting, max_wait_seconds, self.clock)
        self.seconds = seconds
        self.inside: set[str] = set()
        self.served: list[str] = []
        self.errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: self.errors.append(error))

    def arrive(
        self,
        name: str,
        work: Callable[[], Coroutine[Any, Any, object]] | None = None,
        gone: asyncio.Future[None] | None = None,
        ago: float = 0,
    ) -> asyncio.Task[Turn]:
        """Start a request that arrived `ago` seconds ago; its work is a sleep by default."""

        async def request() -> Turn:
            async with self.gate.turn(self.clock() - ago, gone or connected()) as turn:
                assert not self.inside, f"{name} came in beside {self.inside}"
                self.inside.add(name)
                try:
                    await (work() if work else asyncio.sleep(self.seconds))
                finally:
                    self.inside.remove(name)
            self.served.append(name)
            return turn

        return asyncio.create_task(request())


async def fails() -> None:
    await asyncio.sleep(1)
    raise ZeroDivisionError


async def test_order_of_arrival() -> None:
    """Clients are served one at a time, in order of arrival."""
    harness = Harness()
    names = [f"client {n}" for n in range(20)]
    await asyncio.gather(*map(harness.arrive, names))
    assert harness.served == names


async def test_elapsed_includes_the_wait() -> None:
    """A request's `elapsed` begins on its arrival: it includes the wait and the work."""
    harness = Harness()
    first = harness.arrive("first")
    await asyncio.sleep(1)
    second = harness.arrive("second")
    turn = await second
    assert (await first).elapsed == pytest.approx(3, abs=SOON)
    assert turn.began - turn.arrived == pytest.approx(2, abs=SOON)
    assert turn.ended - turn.began == pytest.approx(3, abs=SOON)
    assert turn.elapsed == pytest.approx(5, abs=SOON)


async def test_turn_has_minimum_duration() -> None:
    """A turn whose work is done too early still takes its full time, and keeps others out."""
    harness = Harness()
    first = harness.arrive("first", work=lambda: asyncio.sleep(2.9))
    second = harness.arrive("second")
    assert (await first).elapsed >= SECONDS
    assert (await second).began >= (await first).ended


async def test_full() -> None:
    """A client beyond the limit is rejected immediately; those in the queue keep their slots."""
    harness = Harness(max_waiting=2)
    clients = [harness.arrive(name) for name in "abcd"]
    with pytest.raises(QueueFull):
        await clients.pop()
    assert harness.clock() < SOON
    assert harness.gate.waiting == 2
    await asyncio.gather(*clients)
    assert harness.served == ["a", "b", "c"]


async def test_full_without_a_queue() -> None:
    """With a queue of no slots, one client is served and the next is rejected immediately."""
    harness = Harness(max_waiting=0)
    inside, rejected = harness.arrive("inside"), harness.arrive("rejected")
    with pytest.raises(QueueFull):
        await rejected
    await inside
    await harness.arrive("later")
    assert harness.served == ["inside", "later"]


@pytest.mark.parametrize("index", range(1, 4), ids=["first", "middle", "last"])
async def test_cancel_while_waiting(index: int) -> None:
    """A waiting client that is cancelled frees its slot immediately, and no one waits for it."""
    harness = Harness(max_waiting=3)
    clients = [harness.arrive(name) for name in "abcd"]
    await asyncio.sleep(1)
    clients[index].cancel()
    await asyncio.wait([clients.pop(index)])
    assert harness.clock() == pytest.approx(1, abs=SOON)
    assert harness.gate.waiting == 2
    await asyncio.gather(*clients)
    assert harness.clock() == pytest.approx(3 * SECONDS, abs=SOON)


@pytest.mark.parametrize("at", [1, 2.95], ids=["working", "held"])
async def test_cancel_inside(at: float) -> None:
    """A client that is cancelled inside, at work or held for the exact step, frees the gate."""
    harness = Harness()
    inside = harness.arrive("inside", work=lambda: asyncio.sleep(2.9))
    after = harness.arrive("after")
    await asyncio.sleep(at)
    inside.cancel()
    turn = await after
    assert inside.cancelled()
    assert turn.began == pytest.approx(at, abs=SOON)
    assert turn.elapsed < 2 * SECONDS


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("inside", "cancelled"),
        ("first in queue", "cancelled"),
        ("last in queue", "cancelled"),
        ("first in queue", "gone"),
        ("last in queue", "gone"),
    ],
)
def test_disconnect_at_every_iteration(name: str, how: str) -> None:
    """In whichever iteration a client is cancelled or disconnects, the others are served."""

    async def main(iterations: int) -> bool:
        """Disconnect the client after `iterations` of the loop; return whether it was in time."""
        harness = Harness(seconds=20 * TICK)
        gone = connected()
        clients = {
            other: harness.arrive(other, gone=gone if other == name else None)
            for other in ("inside", "first in queue", "last in queue")
        }
        disconnect = clients[name].cancel if how == "cancelled" else partial(gone.set_result, None)
        after_iterations(iterations, disconnect)
        await asyncio.wait(clients.values())
        disconnected = clients[name].cancelled() or isinstance(
            clients[name].exception(), ClientDisconnected
        )
        assert harness.served == [other for other in clients if other != name or not disconnected]
        assert repr(harness.gate) == "<Gate open, none inside, 0 of 1000 waiting>"
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return disconnected

    iterations = 0
    while run(main(iterations)):
        iterations += 1
    assert iterations > 10


@pytest.mark.parametrize("times", [1, 2])
def test_close_at_every_iteration(times: int) -> None:
    """In whichever iteration the gate closes, begun turns finish and the rest are rejected.

    Nothing else is raised, in the clients or in the loop, even if the gate is closed twice.
    """

    async def main(iterations: int) -> bool:
        """Close the gate after `iterations` of the loop; return whether that was in time."""
        harness = Harness(seconds=20 * TICK)
        begun: list[str] = []
        begun_when_closed: list[list[str]] = []

        async def work(name: str) -> None:
            begun.append(name)
            await asyncio.sleep(harness.seconds)

        clients = [harness.arrive(name, partial(work, name)) for name in "abc"]

        def close() -> None:
            begun_when_closed.append(begun.copy())
            harness.gate.close()

        for again in range(times):
            after_iterations(iterations + again, close)
        await asyncio.wait(clients)
        assert not harness.errors
        rejected = [isinstance(client.exception(), GateClosed) for client in clients]
        assert rejected == sorted(rejected)
        assert harness.served == begun_when_closed[0]
        assert len(harness.served) == rejected.count(False)
        with pytest.raises(GateClosed):
            await harness.arrive("late")
        assert repr(harness.gate) == "<Gate closed, none inside, 0 of 1000 waiting>"
        return any(rejected)

    iterations = 0
    while run(main(iterations)):
        iterations += 1
    assert iterations > 10


async def test_disconnect_inside() -> None:
    """The turn of a client that disconnects inside is completed."""
    harness = Harness()
    gone = connected()
    inside = harness.arrive("inside", gone=gone)
    await asyncio.sleep(1)
    gone.set_result(None)
    assert (await inside).elapsed >= SECONDS


@pytest.mark.parametrize("iterations", range(5))
async def test_disconnect_as_the_gate_closes(iterations: int) -> None:
    """A client that disconnects as the gate closes gets one error, as do those that wait."""
    harness = Harness()
    gone = connected()
    inside, disconnecting = (harness.arrive(name, gone=gone) for name in "ab")
    waiting = [harness.arrive(name) for name in "cd"]
    await asyncio.sleep(1)
    gone.set_result(None)
    after_iterations(iterations, harness.gate.close)
    await asyncio.wait([inside, disconnecting, *waiting])
    assert isinstance(disconnecting.exception(), GateClosed | ClientDisconnected)
    assert [type(client.exception()) for client in waiting] == [GateClosed] * 2
    assert (harness.served, harness.errors) == (["a"], [])


async def test_failure_inside() -> None:
    """A body that raises frees the gate immediately, and its error is raised unchanged."""
    harness = Harness()
    failed, after = harness.arrive("failed", work=fails), harness.arrive("after")
    with pytest.raises(ZeroDivisionError):
        await failed
    turn = await after
    assert turn.began == pytest.approx(1, abs=SOON)
    assert turn.elapsed == pytest.approx(4, abs=SOON)


async def test_failure_between_two_responses() -> None:
    """A failed turn has no `elapsed`: the step is from the turn before it to the next."""
    harness = Harness()
    first = harness.arrive("first")
    await asyncio.sleep(0.1)
    failed = harness.arrive("failed", work=fails)
    await asyncio.sleep(0.1)
    last = harness.arrive("last")
    await asyncio.wait([failed])
    assert not is_short((await first).elapsed, (await last).elapsed, SECONDS)


async def test_close() -> None:
    """Closing rejects waiting and new clients immediately, and lets the one inside finish.

    A closed gate does not count as full.
    """
    harness = Harness(max_waiting=2)
    inside, *waiting = [harness.arrive(name) for name in "abc"]
    await asyncio.sleep(1)
    harness.gate.close()
    harness.gate.close()
    assert not harness.gate.full
    rejections = await asyncio.gather(*waiting, harness.arrive("late"), return_exceptions=True)
    assert [type(rejection) for rejection in rejections] == [GateClosed] * 3
    assert harness.clock() == pytest.approx(1, abs=SOON)
    assert (await inside).elapsed >= SECONDS


async def test_late() -> None:
    """A client whose turn does not begin in time is rejected at that time, and its slot is free."""
    harness = Harness(max_waiting=2, max_wait_seconds=4)
    served, in_time, late = (harness.arrive(name) for name in "abc")
    with pytest.raises(WaitTimeout):
        await late
    assert harness.clock() == pytest.approx(4, abs=SOON)
    assert harness.gate.waiting == 0
    assert (await in_time).began == pytest.approx((await served).ended, abs=SOON)


async def test_late_on_arrival() -> None:
    """A client that arrives too late at a free gate is rejected immediately; no work is done."""
    harness = Harness(max_wait_seconds=4)
    with pytest.raises(WaitTimeout):
        await harness.arrive("late", ago=4.001)
    assert harness.clock() < SOON
    assert (await harness.arrive("in time", ago=3.999)).elapsed == pytest.approx(6.999, abs=SOON)
    assert harness.served == ["in time"]


async def test_late_since_the_loop_was_blocked() -> None:
    """A client whose turn would begin too late because the loop was blocked is rejected, too."""
    harness = Harness(max_wait_seconds=4)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)

    async def block() -> None:
        await asyncio.sleep(1)
        loop.jump(5)

    inside, late = harness.arrive("inside", work=block), harness.arrive("late")
    with pytest.raises(WaitTimeout):
        await late
    await inside
    assert harness.served == ["inside"]


@pytest.mark.parametrize("iterations", range(6))
async def test_disconnect_when_late(iterations: int) -> None:
    """A client that disconnects, or is rejected, just as it becomes late ends with one error."""
    harness = Harness(max_wait_seconds=1)
    gone = connected()
    inside, disconnecting, waiting = (
        harness.arrive("a"),
        harness.arrive("b", gone=gone),
        harness.arrive("c"),
    )
    await asyncio.sleep(1 - 3 * TICK)
    after_iterations(iterations, partial(gone.set_result, None))
    after_iterations(iterations, harness.gate.close)
    await asyncio.wait([inside, disconnecting, waiting])
    assert isinstance(disconnecting.exception(), ClientDisconnected | GateClosed | WaitTimeout)
    assert isinstance(waiting.exception(), GateClosed | WaitTimeout)
    assert (harness.served, harness.errors, harness.gate.waiting) == (["a"], [], 0)


async def test_cancel_after_close() -> None:
    """A turn that is cancelled after the gate was closed ends as the rejected requests did."""
    harness = Harness()
    inside = harness.arrive("inside", work=asyncio.Event().wait)
    await asyncio.sleep(1)
    harness.gate.close()
    await asyncio.sleep(1)
    inside.cancel()
    with pytest.raises(GateClosed):
        await inside


async def test_repr() -> None:
    """The repr shows the state, whether a request is inside and how many wait."""
    harness = Harness(max_waiting=5)
    assert repr(harness.gate) == "<Gate open, none inside, 0 of 5 waiting>"
    clients = [harness.arrive(name) for name in "abc"]
    await asyncio.sleep(0)
    assert repr(harness.gate) == "<Gate open, one inside, 2 of 5 waiting>"
    harness.gate.close()
    await asyncio.gather(*clients, return_exceptions=True)
    assert repr(harness.gate) == "<Gate closed, none inside, 0 of 5 waiting>"


async def test_an_incomplete_turn_has_no_elapsed() -> None:
    """A turn that is running, or has failed, has no `elapsed`."""
    harness = Harness()
    turns: list[Turn] = []

    async def fail() -> None:
        async with harness.gate.turn(harness.clock(), connected()) as turn:
            turns.append(turn)
            assert not hasattr(turn, "elapsed")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not hasattr(turns[0], "elapsed")


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.25, SECONDS])
@pytest.mark.parametrize("clients", [1, 8])
async def test_clients_in_a_loop(clients: int, seconds: float) -> None:
    """If clients send again after each response, each turn takes as long as its work, no longer."""
    harness = Harness(seconds=seconds)

    async def loop() -> None:
        for _ in range(5):
            await harness.arrive("client")

    await asyncio.gather(*(loop() for _ in range(clients)))
    assert harness.clock() == pytest.approx(5 * clients * seconds, rel=0.02)


@pytest.mark.parametrize(("seconds", "later"), [(SECONDS, 0.3), (0.1, 0.03)])
async def test_later_requests_are_not_held(seconds: float, later: float) -> None:
    """The turn of a request that is not simultaneous with the one before ends with its work."""
    harness = Harness(seconds=seconds)
    harness.arrive("first")
    await asyncio.sleep(later)
    turn = await harness.arrive("later")
    assert turn.ended - turn.began == pytest.approx(seconds, abs=SOON)


arrivals = st.lists(
    st.one_of(
        st.floats(0, 0.25),
        st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.05, 0.25, 1 / 3, 1e-9]),
        st.floats(0, 10),
    ),
    min_size=2,
    max_size=8,
)
timer_errors = st.lists(st.floats(-0.005, 0.05), min_size=1, max_size=20)


@given(
    arrivals=arrivals,
    errors=timer_errors,
    seconds=st.sampled_from([0.01, 0.1, 0.2, 0.3, 1 / 3, 3.0, 3.3]),
    start=st.sampled_from([0.0, 0.1, 1e3, 987654.321]),
)
def test_exact_step(
    arrivals: list[float], errors: list[float], seconds: float, start: float
) -> None:
    """Simultaneous requests' steps are exact, whatever the timestamps and the timers' errors.

    The clients queue in the order drawn, from which the order of trusted timestamps may differ.
    """
    drawn = 0

    def timer_error() -> float:
        nonlocal drawn
        drawn += 1
        return errors[drawn % len(errors)]

    async def main() -> list[Turn]:
        loop = asyncio.get_running_loop()
        gate = Gate(seconds, len(arrivals), clock=lambda: start + loop.time())

        async def request(arrived: float) -> Turn:
            async with gate.turn(arrived, connected()) as turn:
                await asyncio.sleep(seconds)
            return turn

        await asyncio.sleep(max(arrivals))
        return await asyncio.gather(*(request(start + arrived) for arrived in arrivals))

    turns = run(main(), timer_error)
    for turn in turns:
        assert turn.ended - turn.began >= seconds
    for one, other in pairwise(turns):
        assert other.began >= one.ended
        apart = abs(other.arrived - one.arrived)
        if apart <= simultaneous(seconds) and other.arrived < one.ended:
            assert not is_short(one.elapsed, other.elapsed, seconds)


@given(
    arrived=st.floats(0, 1e6),
    share=st.floats(1e-6, 1),
    late=st.floats(1e-3, 0.05),
    seconds=st.sampled_from([0.1, 0.2, 0.3, 1 / 3, 3.0]),
)
def test_exact_to_the_last_bit(arrived: float, share: float, late: float, seconds: float) -> None:
    """On a clock that advances by one float at a time, the step is exact by either comparison."""
    apart = share * simultaneous(seconds)
    ended = arrived + 1 + seconds + late
    step = arrived + apart + (ended - arrived) + seconds
    creeping = accumulate(repeat(inf), nextafter, initial=step - 20 * ulp(step))
    clock = chain([arrived + 1, ended, ended], creeping)

    async def main() -> list[Turn]:
        gate = Gate(seconds, 0, clock=lambda: next(clock))
        turns = []
        for arrival in (arrived, arrived + apart):
            async with gate.turn(arrival, connected()) as turn:
                pass
            turns.append(turn)
        return turns

    first, second = run(main())
    assert not is_short(first.elapsed, second.elapsed, seconds)


class GateMachine(RuleBasedStateMachine):
    """Clients arrive, finish, fail and are cancelled in any order; the model is a list of tasks."""

    max_waiting = 3

    @initialize()
    def start(self) -> None:
        self.loop = VirtualTimeLoop()
        self.gate = Gate(1.0, self.max_waiting, clock=self.loop.time)
        self.model: list[asyncio.Task[Turn]] = []
        self.inside: list[asyncio.Task[Turn]] = []
        self.outcome: dict[asyncio.Task[Turn], asyncio.Future[None]] = {}
        self.last: Turn | None = None

    def teardown(self) -> None:
        for task in self.outcome:
            task.cancel()
        self.settle()
        assert self.gate.waiting == 0
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()

    def settle(self, seconds: float = SOON) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule()
    def arrive(self) -> None:
        async def request() -> Turn:
            task = asyncio.current_task()
            assert task
            async with self.gate.turn(self.loop.time(), connected()) as turn:
                self.inside.append(task)
                try:
                    await outcome
                finally:
                    self.inside.remove(task)
            return turn

        outcome: asyncio.Future[None] = self.loop.create_future()
        task = self.loop.create_task(request())
        self.outcome[task] = outcome
        self.settle()
        if len(self.model) > self.max_waiting:
            assert isinstance(task.exception(), QueueFull)
        else:
            self.model.append(task)

    @precondition(lambda self: self.model)
    @rule()
    def finish(self) -> None:
        task = self.model.pop(0)
        self.outcome[task].set_result(None)
        self.settle(2)
        turn = task.result()
        last, self.last = self.last, turn
        if last and turn.arrived - last.arrived <= simultaneous(1.0):
            assert not is_short(last.elapsed, turn.elapsed, 1.0)

    @precondition(lambda self: self.model)
    @rule()
    def fail(self) -> None:
        task = self.model.pop(0)
        self.outcome[task].set_exception(ZeroDivisionError())
        self.settle()
        assert isinstance(task.exception(), ZeroDivisionError)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        task.cancel()
        self.settle()
        assert task.cancelled()

    @precondition(lambda self: len(self.model) > 1)
    @rule()
    def cancel_when_just_granted(self) -> None:
        failed, granted = self.model.pop(0), self.model.pop(0)
        self.outcome[failed].set_exception(ZeroDivisionError())
        failed.add_done_callback(lambda _: granted.cancel())
        self.settle()
        assert granted.cancelled()
        assert isinstance(failed.exception(), ZeroDivisionError)

    @rule(seconds=st.floats(TICK, 1))
    def pause(self, seconds: float) -> None:
        self.settle(seconds)

    @invariant()
    def the_first_is_inside_and_the_rest_wait(self) -> None:
        assert self.inside == self.model[:1]
        assert self.gate.waiting == len(self.model[1:])


TestGateMachine = GateMachine.TestCase
