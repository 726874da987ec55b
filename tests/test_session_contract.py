"""IMFMediaSession::Close, kept by the client session: one last event, four calls, then nothing."""

import inspect
import random
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
import trio.testing

import wdstransport
from wdstransport import (
    ClientJoined,
    ClientLeft,
    ContentDescription,
    Finished,
    Initiated,
    InvalidRequestError,
    JoinedSession,
    MemorySink,
    Progress,
    ReceiveSession,
    SessionCapability,
    SessionClosed,
    SessionOpened,
    SessionStarted,
    SessionStopped,
    ShutdownError,
    TransferEnded,
)
from wdstransport.net.reception import ReceptionSettings

IMAGE = random.Random(20261120).randbytes(200_123)


class Served:
    """A server on the loopback, what it told, and sessions that ask it."""

    def __init__(self, server, told):
        self.server = server
        self.told = told
        self._news = trio.Event()

    def tell(self, event):
        self.told.append(event)
        self._news.set()
        self._news = trio.Event()

    async def until(self, kind):
        with trio.fail_after(20):
            while not any(isinstance(event, kind) for event in self.told):
                await self._news.wait()
        return next(event for event in self.told if isinstance(event, kind))

    def session(self, target, content="big.img", **settings):
        address = {"server": "127.0.0.1", "interface": "127.0.0.1", "port": self.server.port}
        return ReceiveSession(content, target, **(address | settings))


@asynccontextmanager
async def serving(tmp_path, **settings):
    root = tmp_path / "served"
    root.mkdir()
    (root / "big.img").write_bytes(IMAGE)
    served = Served(None, [])
    namespace = wdstransport.DirectoryNamespace("images", root)
    async with wdstransport.TransportServer(
        [namespace], interface="127.0.0.1", port=0, block_size=1400, on_event=served.tell, **settings
    ) as server:
        served.server = server
        yield served


@pytest.fixture
def target(tmp_path):
    return tmp_path / "copy.img"


async def read_until(session, kind):
    with trio.fail_after(20):
        while not isinstance(event := await session.events.get(), kind):
            pass
    return event


async def read_all(session):
    with trio.fail_after(20):
        return [event async for event in session.events]


def names(events):
    return [type(event).__name__ for event in events if not isinstance(event, Progress | wdstransport.Warned)]


@pytest.fixture
def receptions(monkeypatch):
    """The receptions that sessions begin: on no network, and without an end of their own."""
    made = []

    class Reception:
        def __init__(self, settings, tell, zero):
            self.settings, self.tell, self.zero = settings, tell, zero
            self.offer, self.kept, self.whole = None, None, False
            self.whole_when_left, self.kept_when_left, self.fails = False, None, None
            self.leaving = 0.0
            made.append(self)

        async def run(self):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(self.leaving)
                self.whole, self.kept = self.whole_when_left, self.kept_when_left
                if self.fails is not None:
                    raise self.fails

        def result(self):
            return f"result of {self.settings.content}"

    monkeypatch.setattr("wdstransport.session.Reception", Reception)
    return made


def progress(received):
    return Progress(
        seconds=0.0,
        received=received,
        stored=received,
        total=100,
        bytes_per_second=1.0,
        loss=0.0,
        duplicates=0,
        refused=0,
        dropped=0,
    )


# ------------------------------------------------------------------ a transfer


async def test_start_transfers_and_tells_how_it_ended(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target) as session:
        session.start()
        ended = await read_until(session, TransferEnded)
        assert ended.error is None
        assert ended.result.size == len(IMAGE)
        assert target.read_bytes() == IMAGE


async def test_events_of_a_whole_transfer_come_in_order_and_closed_is_the_last(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target) as session:
        session.start()
        events = []
        async for event in session.events:
            events.append(event)
            if isinstance(event, TransferEnded):
                session.close()
        expected = [
            "SessionStarted",
            "Initiated",
            "JoinedSession",
            "Finished",
            "TransferEnded",
            "SessionClosed",
        ]
        assert names(events) == expected
        assert [event.seconds for event in events] == sorted(event.seconds for event in events)


async def test_failed_transfer_is_told_as_an_event_and_can_be_started_again(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target, content="late.img") as session:
        session.start()
        ended = await read_until(session, TransferEnded)
        assert isinstance(ended.error, wdstransport.RefusedError)
        (tmp_path / "served" / "late.img").write_bytes(IMAGE)
        assert session.capabilities() == SessionCapability.START | SessionCapability.CLOSE
        session.start()
        assert (await read_until(session, TransferEnded)).error is None
        assert target.read_bytes() == IMAGE


async def test_stop_leaves_as_cancelled_keeps_what_arrived_and_can_be_followed_by_start(tmp_path, target):
    async with serving(tmp_path, rate=150_000) as served, served.session(target) as session:
        session.start()
        while not (await read_until(session, Progress)).stored:
            pass
        session.stop()
        stopped = await read_until(session, SessionStopped)
        assert stopped.error is None
        assert stopped.kept == target.with_name("copy.img.part")
        assert (await served.until(ClientLeft)).reason == "cancelled"
        session.start()
        await read_until(session, JoinedSession)


async def test_start_while_a_transfer_runs_is_an_invalid_request_told_by_its_event(tmp_path, target):
    async with serving(tmp_path, min_clients=2) as served, served.session(target) as session:
        session.start()
        session.start()
        assert (await read_until(session, SessionStarted)).error is None
        assert isinstance((await read_until(session, SessionStarted)).error, InvalidRequestError)


@pytest.mark.parametrize("stopped", [False, True], ids=["while it runs", "after it wrote into a sink"])
async def test_start_that_is_refused_begins_nothing(target, receptions, stopped):
    async with ReceiveSession("big.img", MemorySink() if stopped else target, server="127.0.0.1") as session:
        session.start()
        if stopped:
            session.stop()
        session.start()
        await read_until(session, SessionStarted)
        assert (await read_until(session, SessionStarted)).error is not None
        await trio.testing.wait_all_tasks_blocked()
        assert len(receptions) == 1


async def test_stop_without_a_transfer_is_an_invalid_request_told_by_its_event(target):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        session.stop()
        assert isinstance((await read_until(session, SessionStopped)).error, InvalidRequestError)
        await trio.testing.wait_all_tasks_blocked()  # and then it sleeps


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("fails", [None, OSError("the socket is gone")], ids=["", "fails"])
async def test_transfer_that_came_to_an_end_while_it_was_stopped_is_told_as_ended(
    target, receptions, whole, fails
):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        session.start()
        await trio.testing.wait_all_tasks_blocked()
        receptions[0].whole_when_left, receptions[0].fails = whole, fails
        session.stop()
        session.close()
        events = await read_all(session)
    result = "result of big.img" if whole and not fails else None
    ended = [(event.result, event.error) for event in events if isinstance(event, TransferEnded)]
    assert ended == ([(result, fails)] if whole or fails else [])
    (stopped,) = [event for event in events if isinstance(event, SessionStopped)]
    assert stopped.error is None
    assert stopped is events[-2]


async def test_each_stop_waits_for_its_own_transfer_and_tells_what_that_kept(target, receptions):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        for part in (target.with_name("first"), target.with_name("second")):
            session.start()
            await read_until(session, SessionStarted)
            receptions[-1].kept_when_left = part
            session.stop()
            assert (await read_until(session, SessionStopped)).kept == part


async def test_progress_is_the_newest_of_the_transfer_that_runs(target, receptions):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        assert session.progress() is None
        for _ in range(2):
            session.start()
            await read_until(session, SessionStarted)
            assert session.progress() is None
            for received in (10, 20):
                receptions[-1].tell(progress(received))
            receptions[-1].tell(wdstransport.Warned(seconds=0.0, message="careful"))
            assert session.progress() == progress(20)
            session.stop()
            await read_until(session, SessionStopped)


async def test_content_is_described_as_asked_for_and_by_the_server_once_it_has_answered(target, receptions):
    sink = MemorySink()
    for target_, described in ((target, str(target)), (sink, sink.description)):
        session = ReceiveSession("big.img", target_, server="deploy.example", namespace="lab")
        asked = ContentDescription(server="deploy.example", namespace="lab", name="big.img", target=described)
        async with session:
            assert session.content() == asked
            session.start()
            await read_until(session, SessionStarted)
            assert session.content() == asked
            receptions[-1].offer = SimpleNamespace(
                server=("192.0.2.1", 1),
                group=("239.0.0.2", 3),
                session_id=4,
                content_size=1000,
                block_size=300,
                total_blocks=4,
            )
            assert session.content() == ContentDescription(
                server="deploy.example",
                namespace="lab",
                name="big.img",
                target=described,
                size=1000,
                block_size=300,
                total_blocks=4,
                session_id=4,
                group=("239.0.0.2", 3),
            )


async def test_group_and_session_are_those_that_the_server_opened(tmp_path, target):
    async with serving(tmp_path, min_clients=2) as served, served.session(target) as session:
        session.start()
        await read_until(session, JoinedSession)
        opened = await served.until(SessionOpened)
        assert (session.content().session_id, session.content().group) == (opened.session_id, opened.group)


async def test_seconds_of_every_event_count_from_when_the_session_was_entered(tmp_path, target, mock_clock):
    async with serving(tmp_path) as served:
        (tmp_path / "served" / "empty.img").write_bytes(b"")
        mock_clock.jump(1000)
        async with served.session(target, content="empty.img") as session:
            assert session.clock().time() == 0
            mock_clock.jump(10)
            session.start()
            events = []
            async for event in session.events:
                events.append(event)
                if isinstance(event, TransferEnded):
                    session.close()
            assert session.clock().time() == 10
        assert [event.seconds for event in events] == [10] * len(events)
        assert Initiated in {type(event) for event in events}


ARGUMENTS = {
    "server": "deploy.example",
    "namespace": "lab",
    "interface": "eth7",
    "port": 5042,
    "security": "none",
    "timeout": 3.5,
    "force": True,
    "cache_bytes": 1 << 20,
    "drop_share": 0.25,
    "drop_seed": 9,
}


@pytest.mark.parametrize("arguments", [ARGUMENTS, {"server": "deploy.example"}], ids=["all", "defaults"])
async def test_arguments_and_their_defaults_are_those_of_receive(target, receptions, arguments):
    async with ReceiveSession("big.img", target, **arguments) as session:
        session.start()
        await read_until(session, SessionStarted)
    given = {"content": "big.img", "target": target, **arguments}
    signature = inspect.signature(wdstransport.receive).parameters
    defaults = {name: each.default for name, each in signature.items() if name != "on_event"}
    assert receptions[0].settings == ReceptionSettings(**defaults | given)


async def test_second_start_into_a_sink_is_an_invalid_request(tmp_path):
    sink = MemorySink()
    async with serving(tmp_path) as served, served.session(sink) as session:
        session.start()
        await read_until(session, TransferEnded)
        assert bytes(sink.data) == IMAGE
        assert session.capabilities() == SessionCapability.CLOSE
        session.start()
        assert isinstance((await read_until(session, SessionStarted)).error, InvalidRequestError)


# ------------------------------------------------------------------ Close


async def test_close_returns_at_once_and_closed_is_the_last_event(target):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        assert session.close() is None
        assert names(await read_all(session)) == ["SessionClosed"]
        with pytest.raises(InvalidRequestError):
            await session.events.get()
        assert await read_all(session) == []


async def test_close_of_a_running_transfer_leaves_as_cancelled_before_closed_and_keeps_the_part(
    tmp_path, target
):
    async with serving(tmp_path, rate=100_000) as served, served.session(target) as session:
        session.start()
        while not (await read_until(session, Progress)).stored:
            pass
        session.close()
        events = await read_all(session)
        assert isinstance(events[-1], SessionClosed)
        assert not [event for event in events if isinstance(event, TransferEnded | SessionStopped | Finished)]
        part = target.with_name("copy.img.part")
        assert events[-1].kept == part
        assert part.exists()
        assert not target.exists()
        # LEAVE had left before SessionClosed: the server needs nothing more from us to know.
        session.shutdown()
        assert (await served.until(ClientLeft)).reason == "cancelled"


async def test_close_right_after_start_tells_started_then_closed(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target) as session:
        session.start()
        session.close()
        events = names(await read_all(session))
        assert events[0] == "SessionStarted"
        assert events[-1] == "SessionClosed"
        assert "TransferEnded" not in events


async def test_close_after_the_end_keeps_the_whole_target(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target) as session:
        session.start()
        await read_until(session, TransferEnded)
        session.close()
        assert (await read_until(session, SessionClosed)).kept is None
        assert target.read_bytes() == IMAGE


# ------------------------------------------------------------------ after Close: four calls


@pytest.mark.parametrize("told", [False, True], ids=["before closed is told", "after closed is told"])
async def test_after_close_exactly_four_calls_are_valid(tmp_path, target, told):
    async with serving(tmp_path, min_clients=2) as served, served.session(target) as session:
        session.start()
        await read_until(session, JoinedSession)
        session.close()
        if told:
            await read_until(session, SessionClosed)
        assert session.clock().time() > 0
        content = session.content()
        assert (content.namespace, content.name, content.size) == ("images", "big.img", len(IMAGE))
        assert content.total_blocks == -(-len(IMAGE) // content.block_size)
        assert session.capabilities() == SessionCapability(0)
        for call in (session.close, session.progress):
            with pytest.raises(InvalidRequestError) as caught:
                call()
            assert caught.value.winerror == 0xC00D36B2
        session.shutdown()


async def test_requests_after_close_are_answered_by_events_with_the_error_before_closed(tmp_path, target):
    async with serving(tmp_path) as served, served.session(target) as session:
        session.close()
        session.start()
        session.stop()
        started, stopped, closed = await read_all(session)
        assert isinstance(started, SessionStarted)
        assert isinstance(started.error, InvalidRequestError)
        assert isinstance(stopped, SessionStopped)
        assert stopped.error.winerror == 0xC00D36B2
        assert isinstance(closed, SessionClosed)
        assert not served.told[1:]


async def test_requests_after_the_last_event_are_refused_at_once(target):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        session.close()
        await read_until(session, SessionClosed)
        for call in (session.start, session.stop):
            with pytest.raises(InvalidRequestError):
                call()


# ------------------------------------------------------------------ Shutdown

CALLS = ["start", "stop", "close", "progress", "clock", "content", "capabilities", "shutdown"]


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
async def test_after_shutdown_every_call_is_refused_as_shut_down(target, closed):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        if closed:
            session.close()
            await read_until(session, SessionClosed)
        assert session.shutdown() is None
        for name in CALLS:
            with pytest.raises(ShutdownError) as caught:
                getattr(session, name)()
            assert caught.value.winerror == 0xC00D3E85
            assert name in str(caught.value)
        with pytest.raises(ShutdownError):
            await session.events.get()
    with pytest.raises(ShutdownError):
        async with session:
            pass


async def test_shutdown_emits_nothing_and_forgets_what_was_unread(tmp_path, target):
    async with serving(tmp_path, min_clients=2) as served, served.session(target) as session:
        session.start()
        await served.until(ClientJoined)
        session.shutdown()
        with pytest.raises(ShutdownError):
            await session.events.get()
        # It runs no more, although nothing was told here.
        assert (await served.until(ClientLeft)).reason == "cancelled"


async def test_shutdown_ends_a_wait_for_events_that_is_under_way(target):
    async def wait():
        with pytest.raises(ShutdownError):
            await session.events.get()

    async with (
        ReceiveSession("big.img", target, server="127.0.0.1") as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        session.shutdown()


async def test_nothing_begins_after_shutdown_that_was_requested_before(target, receptions):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        session.start()
        session.shutdown()
    assert receptions == []


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("steps", range(6))
async def test_shutdown_in_the_middle_of_closing_stays_the_last_state(target, receptions, running, steps):
    for _ in range(10):  # which task comes first within a step is left to chance
        async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
            if running:
                session.start()
                await trio.testing.wait_all_tasks_blocked()
            session.close()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            session.shutdown()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ShutdownError):
                session.clock()


async def test_program_goes_on_in_the_block_after_shutdown(target):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        session.shutdown()
        await trio.lowlevel.checkpoint()
        reached = True
    assert reached


# ------------------------------------------------------------------ the block


async def test_leaving_the_block_closes_and_shuts_down(tmp_path, target):
    async with serving(tmp_path, min_clients=2) as served:
        async with served.session(target) as session:
            session.start()
            await served.until(ClientJoined)
        with pytest.raises(ShutdownError):
            session.clock()
        assert (await served.until(ClientLeft)).reason == "cancelled"


async def test_cancelling_the_block_leaves_as_cancelled_and_no_part_that_nothing_was_stored_in(
    tmp_path, target
):
    async with serving(tmp_path, min_clients=2) as served:
        with trio.CancelScope() as scope:
            async with served.session(target) as session:
                session.start()
                await served.until(ClientJoined)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert (await served.until(ClientLeft)).reason == "cancelled"
        assert not target.with_name("copy.img.part").exists()


async def test_error_in_the_block_comes_out_of_it_alone(target, receptions):
    async def fail():
        async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
            session.start()
            await read_until(session, SessionStarted)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


@pytest.mark.parametrize(("leaving", "closed"), [(0.0, 0.0), (3.0, 3.0), (3600.0, 5.0)])
async def test_leaving_the_block_waits_for_closing_but_not_for_ever(
    target, receptions, autojump_clock, leaving, closed
):
    """Who reads events elsewhere hears, after five seconds at the latest, that no more will come."""
    heard = []

    async def read(session):
        await read_until(session, SessionStarted)
        try:
            heard.append(await session.events.get())
        except ShutdownError as error:
            heard.append(error)
        heard.append(trio.current_time() - begun)

    async with trio.open_nursery() as nursery:
        async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
            nursery.start_soon(read, session)
            session.start()
            await trio.testing.wait_all_tasks_blocked()
            receptions[0].leaving = leaving
            begun = trio.current_time()
        assert trio.current_time() - begun == leaving
    last, at = heard
    assert isinstance(last, ShutdownError | SessionClosed)
    assert at == closed


async def test_calls_before_the_block_are_invalid_requests(target):
    session = ReceiveSession("big.img", target, server="127.0.0.1")
    for name in CALLS[:-1]:
        with pytest.raises(InvalidRequestError):
            getattr(session, name)()
    async with session:
        assert session.capabilities() == SessionCapability.START | SessionCapability.CLOSE
        with pytest.raises(InvalidRequestError):
            async with session:
                pass


async def test_capabilities_while_a_transfer_runs_are_stop_and_close(tmp_path, target):
    async with serving(tmp_path, min_clients=2) as served, served.session(target) as session:
        session.start()
        await read_until(session, JoinedSession)
        assert session.capabilities() == SessionCapability.STOP | SessionCapability.CLOSE


async def test_unread_progress_is_replaced_by_newer_progress(tmp_path, target):
    async with serving(tmp_path, rate=150_000) as served, served.session(target) as session:
        session.start()
        await served.until(ClientLeft)
        session.close()
        assert len([event for event in await read_all(session) if isinstance(event, Progress)]) <= 1


async def test_more_requests_than_can_wait_are_refused_at_once(target):
    async with ReceiveSession("big.img", target, server="127.0.0.1") as session:
        for _ in range(64):
            session.stop()
        with pytest.raises(InvalidRequestError):
            session.stop()
        session.close()
        assert len(await read_all(session)) == 65


def test_bad_settings_are_refused_when_the_session_is_made(target):
    with pytest.raises(wdstransport.UsageError):
        ReceiveSession("big.img", target, server="127.0.0.1", security="magic")
    with pytest.raises(wdstransport.UsageError):
        ReceiveSession("big.img", target, server="127.0.0.1", drop_share=1.5)
