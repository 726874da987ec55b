"""How one task sleeps, and how threads hand their results to it."""

import socket
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from wdstransport.net.waiting import Waiter, Worker, cause_of, open_tasks

FAR = 1e12


@pytest.fixture
def pair():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        yield left, right


class TestOpenTasks:
    async def test_the_error_of_a_task_reaches_the_caller_without_a_group_around_it(self):
        async def fail():
            raise KeyError("x")

        async def block():
            async with open_tasks() as nursery:
                nursery.start_soon(fail)
                await trio.sleep_forever()

        with pytest.raises(KeyError):
            await block()

    async def test_the_error_of_the_block_itself_cancels_the_tasks_and_comes_out_bare(self):
        ended = []

        async def work():
            try:
                await trio.sleep_forever()
            finally:
                ended.append(True)

        async def block():
            async with open_tasks() as nursery:
                nursery.start_soon(work)
                await wait_all_tasks_blocked()
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await block()
        assert ended == [True]

    async def test_without_an_error_it_waits_for_its_tasks(self):
        done = []

        async def work():
            await trio.lowlevel.checkpoint()
            done.append(True)

        async with open_tasks() as nursery:
            nursery.start_soon(work)
        assert done == [True]

    async def test_a_cancellation_from_outside_passes_through(self):
        with trio.CancelScope() as scope:
            async with open_tasks() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught

    async def test_an_error_during_a_cancellation_is_what_the_caller_sees(self):
        async def fail_when_cancelled():
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("in the end")

        async def block():
            with trio.CancelScope() as scope:
                async with open_tasks() as nursery:
                    nursery.start_soon(fail_when_cancelled)
                    nursery.start_soon(trio.sleep_forever)
                    await wait_all_tasks_blocked()
                    scope.cancel()

        with pytest.raises(OSError, match="in the end"):
            await block()


class TestCauseOf:
    def test_an_error_alone_is_its_own_cause(self):
        error = ValueError()
        assert cause_of(error) is error

    def test_groups_in_groups_give_their_first_error(self):
        error = ValueError("first")
        nested = ExceptionGroup("outer", [ExceptionGroup("inner", [error, KeyError()]), OSError()])
        assert cause_of(nested) is error


class TestWaiter:
    async def test_what_comes_ends_the_sleep(self, pair):
        left, right = pair
        waiter = Waiter(left)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.wait, FAR)
                await wait_all_tasks_blocked()
                right.send(b"x")

    async def test_a_socket_with_room_ends_a_sleep_that_waits_for_room(self, pair):
        with trio.fail_after(60):
            await Waiter(pair[0]).wait(FAR, writable=True)

    async def test_the_deadline_ends_the_sleep(self, pair, autojump_clock):
        waiter = Waiter(pair[0])
        await waiter.wait(trio.current_time() + 5)
        assert trio.current_time() >= 5

    async def test_a_deadline_in_the_past_ends_it_at_once(self, pair):
        with trio.fail_after(60):
            await Waiter(pair[0]).wait(trio.current_time() - 1)
            await Waiter(pair[0]).pause(trio.current_time() - 1)

    @pytest.mark.parametrize("how", ["wait", "pause"])
    async def test_waking_ends_the_sleep_under_way(self, pair, how):
        waiter = Waiter(pair[0])
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getattr(waiter, how), FAR)
                await wait_all_tasks_blocked()
                waiter.wake()

    @pytest.mark.parametrize("how", ["wait", "pause"])
    async def test_waking_somebody_who_is_up_ends_the_next_sleep_and_no_other(
        self, pair, how, autojump_clock
    ):
        waiter = Waiter(pair[0])
        waiter.wake()
        waiter.wake()
        await getattr(waiter, how)(trio.current_time() + 5)
        assert trio.current_time() < 5
        await getattr(waiter, how)(trio.current_time() + 5)
        assert trio.current_time() >= 5

    async def test_a_wake_that_ended_a_sleep_is_used_up(self, pair, autojump_clock):
        waiter = Waiter(pair[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter.wait, FAR)
            await wait_all_tasks_blocked()
            waiter.wake()
        await waiter.wait(trio.current_time() + 5)
        assert trio.current_time() >= 5

    async def test_a_pause_takes_no_notice_of_what_comes(self, pair, autojump_clock):
        left, right = pair
        right.send(b"x")
        await Waiter(left).pause(trio.current_time() + 5)
        assert trio.current_time() >= 5

    async def test_a_sleep_gives_way_to_a_cancellation(self, pair):
        waiter = Waiter(pair[0])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiter.wait, FAR)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    async def test_a_wake_gives_others_their_turn(self, pair):
        waiter = Waiter(pair[0])
        turns = []

        async def other():
            turns.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            while not turns:
                waiter.wake()
                await waiter.wait(FAR)


class Thinker:
    """A worker whose thread works only when the test lets it."""

    def __init__(self, work=list):
        self.gate = threading.Event()
        self.woken = trio.Event()
        self.wakes = 0
        self.turns = []
        self._work = work
        self.worker = Worker("thinker", self._run, self._wake)

    def _run(self, jobs):
        assert self.gate.wait(60)
        self.turns.append(jobs)
        return self._work(jobs)

    def _wake(self):
        self.wakes += 1
        self.woken.set()

    async def close(self):
        self.gate.set()
        with trio.fail_after(60):
            await self.worker.close()

    def results(self):
        found = []
        while (result := self.worker.take()) is not None:
            found.append(result)
        return found


class TestWorker:
    async def test_jobs_are_done_in_order_many_a_turn(self):
        thinker = Thinker()
        for number in range(100):
            thinker.worker.put(number)
        await thinker.close()
        assert [job for turn in thinker.turns for job in turn] == list(range(100))
        assert len(thinker.turns) <= 2  # what waited while the first turn was held up went in one
        assert thinker.results() == thinker.turns

    async def test_there_is_no_result_before_there_is_one(self):
        thinker = Thinker()
        assert thinker.worker.take() is None
        await thinker.close()
        assert thinker.worker.take() is None

    async def test_an_error_of_the_work_comes_out_where_results_are_taken_and_later_jobs_are_done(self):
        def work(jobs):
            if "bad" in jobs:
                raise OSError("bad job")
            return jobs

        thinker = Thinker(work)
        thinker.gate.set()
        thinker.worker.put("bad")
        thinker.worker.about_to_sleep() and await thinker.woken.wait()
        with pytest.raises(OSError, match="bad job"):
            thinker.worker.take()
        thinker.worker.put("good")
        await thinker.close()
        assert thinker.results() == [["good"]]

    async def test_who_announced_a_sleep_is_woken_once(self):
        thinker = Thinker()
        assert thinker.worker.about_to_sleep()
        thinker.worker.put(1)
        thinker.gate.set()
        with trio.fail_after(60):
            await thinker.woken.wait()
        thinker.worker.awake()
        await thinker.close()
        assert thinker.wakes == 1
        assert thinker.results() == [[1]]

    async def test_nobody_is_woken_who_announced_nothing(self):
        thinker = Thinker()
        thinker.worker.put(1)
        await thinker.close()
        assert thinker.wakes == 0

    async def test_who_wants_to_sleep_though_a_result_waits_is_told_to_look_first(self):
        thinker = Thinker()
        thinker.worker.put(1)
        await thinker.close()
        assert not thinker.worker.about_to_sleep()
        assert thinker.results() == [[1]]
        assert thinker.worker.about_to_sleep()

    async def test_closing_waits_until_everything_given_is_done(self):
        thinker = Thinker()
        for number in range(3):
            thinker.worker.put(number)
        await thinker.close()
        assert sum(map(len, thinker.turns)) == 3

    async def test_the_thread_is_gone_after_closing(self):
        before = threading.active_count()
        thinker = Thinker()
        assert any(thread.name == "thinker" for thread in threading.enumerate())
        await thinker.close()
        assert not any(thread.name == "thinker" for thread in threading.enumerate())
        assert threading.active_count() <= before + 1  # trio keeps a thread of its own for later

    def test_a_result_that_comes_after_the_event_loop_ended_harms_nobody(self):
        gate = threading.Event()
        kept = []

        async def main():
            worker = Worker("late", lambda jobs: gate.wait(60), lambda: None)
            kept.append(worker)
            worker.put(1)
            assert worker.about_to_sleep()

        trio.run(main)
        gate.set()
        kept[0]._thread.join(60)
        assert not kept[0]._thread.is_alive()
