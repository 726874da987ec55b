"""One reception by itself: what may be asked for, what it tells, and what it makes of an end.

Whole transfers are in `tests/test_client.py`; here drivers, servers and sinks are made up.
"""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from loopback import HOST, PATIENCE, Events

from wdstransport.content.files import FileSink
from wdstransport.content.pipes import PipeSink
from wdstransport.content.sinks import MemorySink
from wdstransport.errors import NobodyAnsweredError, RemovedError, StorageError, UsageError
from wdstransport.net import reception
from wdstransport.net.client_setup import Offer, Silence
from wdstransport.net.interfaces import find_interface
from wdstransport.net.reception import ReceiveResult, Reception, ReceptionSettings
from wdstransport.observe.events import Finished, Initiated, JoinedSession, Kept, Progress, Unanswered
from wdstransport.protocol.events import Departed, Left
from wdstransport.wire.transport import KickReason

BLOCK = 1000


def settings(**changes):
    fields = {
        "content": "image",
        "target": MemorySink(),
        "server": HOST,
        "namespace": "images",
        "interface": None,
        "port": 5041,
        "security": "checksum",
        "timeout": 5.0,
        "force": False,
        "cache_bytes": 1 << 20,
        "drop_share": 0.0,
        "drop_seed": 0,
    }
    return ReceptionSettings(**{**fields, **changes})


def offered(size=10 * BLOCK):
    return Offer(
        asked=(HOST, 5041),
        interface=find_interface("lo"),
        local_address=HOST,
        server=(HOST, 6001),
        group=("239.192.83.1", 6001),
        session_id=7,
        content_size=size,
        block_size=BLOCK,
        total_blocks=-(-size // BLOCK),
    )


class Driver:
    """What a reception sees of a driver."""

    def __init__(self):
        self.features = {"joins": "made up"}
        self.stored = 0
        self.received = 0
        self.stalled = False
        self.left = []
        self.session = SimpleNamespace(
            leave=lambda why, now: self.left.append((why, now)),
            transport=SimpleNamespace(data=SimpleNamespace(loss=SimpleNamespace(rate=0.25)), refused=3),
            application=SimpleNamespace(duplicates=4),
            dropped=Counter(field=5, stale=6),
            cache_room=600,
            cache_size=1000,
        )


class Piped(MemorySink):
    """A sink that takes bytes up to a horizon."""

    reach = 0

    def horizon(self):
        return self.reach


class Test:
    """A reception under test, and what it told."""

    __test__ = False

    def __init__(self, offer=None, zero=None, **changes):
        self.settings = settings(**changes)
        self.told = Events()
        self.reception = Reception(self.settings, self.told, zero)
        self.reception.offer = offered() if offer is None else offer
        self.reception._sink = self.settings.target
        self.driver = self.reception._driver = Driver()


class TestSettings:
    @pytest.mark.parametrize(
        "values",
        [
            {"timeout": -0.001},
            {"timeout": math.inf},
            {"timeout": math.nan},
            {"port": 0},
            {"port": 65536},
            {"cache_bytes": 0},
            {"drop_share": -0.001},
            {"drop_share": 1.0},
            {"security": "hash"},
        ],
        ids=str,
    )
    def test_a_value_that_cannot_be_is_refused_and_named(self, values):
        (value,) = values.values()
        with pytest.raises(UsageError, match=f"not {value!r}"):
            settings(**values)

    @pytest.mark.parametrize(
        "values",
        [
            {"timeout": 0.0},
            {"port": 1},
            {"port": 65535},
            {"cache_bytes": 1},
            {"drop_share": 0.0},
            {"drop_share": 0.999},
            {"security": "none"},
        ],
        ids=str,
    )
    def test_the_last_values_that_can_be_are_taken(self, values):
        assert settings(**values)

    @pytest.mark.parametrize(
        ("target", "is_path"),
        [("a", True), (Path("a"), True), ("-", False), (Path("-"), False), (MemorySink(), False)],
    )
    def test_a_path_can_be_tried_again_and_a_pipe_or_a_sink_cannot(self, target, is_path):
        assert settings(target=target).is_path is is_path

    def test_a_target_is_a_sink_or_names_one(self, tmp_path):
        given = MemorySink()
        assert settings(target=given).sink(5) is given
        pipe = settings(target="-").sink(5)
        assert isinstance(pipe, PipeSink)
        assert (pipe._descriptor, pipe._window) == (1, 40 << 20)
        for target in (tmp_path / "image", str(tmp_path / "image")):
            file = settings(target=target, force=True).sink(5)
            assert isinstance(file, FileSink)
            assert (file.description, file._size, file._force) == (str(tmp_path / "image"), 5, True)


class TestATurn:
    async def test_progress_is_told_every_half_second_with_the_rate_since_the_last(self, mock_clock):
        test = Test(zero=trio.current_time() - 100)
        begun = trio.current_time()
        rates, next_turns = [], []
        for late, stored in ((0.5, 3000), (2.5, 5000), (2.5, 5000), (3, 5000)):
            test.driver.stored = stored
            next_turns.append(test.reception._turn(begun + late) - begun - late)
            rates.append(test.told[-1].bytes_per_second)
        assert rates == [6000.0, 1000.0, 0.0, 0.0]
        assert next_turns == pytest.approx([0.5] * 4)
        test.driver.received = 7000
        test.reception._turn(begun + 3)
        assert test.told[-1] == Progress(
            seconds=103.0,
            received=7000,
            stored=5000,
            total=10_000,
            bytes_per_second=0.0,
            loss=0.25,
            duplicates=4,
            refused=3,
            dropped=11,
            dropped_by_reason={"field": 5, "stale": 6},
        )

    async def test_who_is_not_let_in_leaves_as_inactive_when_the_time_is_up(self):
        test = Test()
        test.reception._join_by = 50.0
        test.reception._turn(49.9)
        assert test.driver.left == []
        test.reception._turn(50.0)
        assert test.driver.left == [(Left.INACTIVE, 50.0)]

    async def test_who_was_let_in_stays_though_the_time_to_join_is_up(self):
        test = Test()
        test.reception._join_by = 50.0
        test.reception.joined(9)
        test.reception._turn(51.0)
        assert test.driver.left == []


class TestJoining:
    async def test_time_counts_from_the_first_session_that_a_client_joined(self, mock_clock):
        test = Test()
        begun = trio.current_time()
        mock_clock.jump(2)
        test.reception.joined(9)
        mock_clock.jump(3)
        test.reception.joined(10)  # a slower session
        assert test.reception._joined_at == begun + 2
        assert test.told == [
            JoinedSession(seconds=seconds, client_id=client_id, features={"joins": "made up"})
            for seconds, client_id in ((2.0, 9), (5.0, 10))
        ]

    async def test_silence_is_told_as_it_was_heard_of(self, mock_clock):
        test = Test()
        mock_clock.jump(2)
        test.reception._unanswered(Silence((HOST, 5041), "lo", 5, "asked five times"))
        assert test.told == [
            Unanswered(seconds=2.0, server=(HOST, 5041), interface="lo", asked=5, message="asked five times")
        ]


class TestDeparture:
    @pytest.mark.parametrize("departed", [Departed(Left.COMPLETE), Departed(Left.KICKED, KickReason.FAIL)])
    async def test_with_a_whole_target_no_departure_is_an_error(self, departed):
        test = Test()
        test.reception.whole = True
        test.reception._check_departure(departed, offered())

    async def test_who_left_as_complete_has_no_error(self):
        Test().reception._check_departure(Departed(Left.COMPLETE), offered())

    @pytest.mark.parametrize(
        ("reason", "number", "why"),
        [
            (KickReason.POLICY_NOT_MET, 0, "policy"),
            (None, 0, "policy"),
            (KickReason.FALLBACK, 1, "another way"),
            (KickReason.FAIL, 2, "ended the transfer"),
        ],
    )
    async def test_a_kick_is_an_error_with_its_reason_in_words_and_as_a_number(self, reason, number, why):
        with pytest.raises(RemovedError, match=f"server {HOST} removed this client: .*{why}") as caught:
            Test().reception._check_departure(Departed(Left.KICKED, reason), offered())
        assert caught.value.reason == number

    async def test_a_server_that_lets_nobody_in_is_told_from_one_that_fell_silent(self):
        test = Test()
        with pytest.raises(NobodyAnsweredError, match=rf"{HOST} .*nobody let this client join at port 6001"):
            test.reception._check_departure(Departed(Left.INACTIVE), offered())
        test.reception.joined(9)
        with pytest.raises(NobodyAnsweredError, match=rf"nothing has come from {HOST} .*239\.192\.83\.1"):
            test.reception._check_departure(Departed(Left.INACTIVE), offered())
        with pytest.raises(NobodyAnsweredError, match=r"not answered this client .* port 6001"):
            test.reception._check_departure(Departed(Left.UNHEARD), offered())


class TestAsAConsumer:
    @pytest.mark.parametrize(
        ("reach", "horizon"), [(None, None), (0, 0), (999, 0), (1000, 1), (9499, 9), (9500, 10), (20_000, 10)]
    )
    async def test_the_last_block_that_fits_is_the_last_that_the_sink_takes_whole(self, reach, horizon):
        sink = Piped()
        sink.reach = reach
        assert Test(offered(9500), target=sink).reception.horizon() == horizon

    @pytest.mark.parametrize("outstanding", [0, 1])
    @pytest.mark.parametrize("everything", [False, True])
    async def test_all_is_stored_when_all_has_come_and_nothing_waits(self, everything, outstanding):
        test = Test()
        test.reception._writer = SimpleNamespace(collect=lambda: ["done"], outstanding=outstanding)
        if everything:
            test.reception.all_received()
        assert test.reception.collect() == ["done"]
        assert test.reception._stored.is_set() is (everything and not outstanding)

    @pytest.mark.parametrize(
        ("facts", "asks"),
        [
            ({}, False),
            ({"room": 500}, False),
            ({"room": 499}, True),
            ({"stalled": True}, True),
            ({"everything": True}, True),
            ({"sink": Piped()}, True),
        ],
        ids=["room", "just enough room", "little room", "stalled", "everything has come", "a pipe"],
    )
    async def test_writes_wake_the_driver_only_where_something_waits_for_them(self, facts, asks):
        test = Test(target=facts.get("sink", MemorySink()))
        asked = []
        test.reception._writer = SimpleNamespace(
            hand_over=lambda: asked.append("handed over"),
            worker=SimpleNamespace(about_to_sleep=lambda: asked.append("asked") or False),
        )
        test.driver.session.cache_room = facts.get("room", 600)
        test.driver.stalled = facts.get("stalled", False)
        if "everything" in facts:
            test.reception.all_received()
        assert test.reception.about_to_sleep() is not asks
        assert asked == ["handed over", *["asked"] * asks]


class TestATransfer:
    """With a driver that runs as the test says, and a writer that only ends."""

    @pytest.fixture
    def log(self):
        return []

    @pytest.fixture
    def run(self, monkeypatch, log):
        """Runs a reception's transfer into a sink; its driver's run is a function of the driver."""

        async def begin(test, how):
            sink = test.settings.target
            sink.abandon = lambda: log.append("abandoned")
            warned = SimpleNamespace(
                group=SimpleNamespace(warnings=("small for reading",)),
                own=SimpleNamespace(warnings=("small for sending",)),
            )

            class Made(Driver):
                def __init__(self, session, sockets, consumer, **options):
                    super().__init__()
                    assert (sockets, consumer) == (warned, test.reception)
                    self.session = session
                    self.options = options
                    self.departed = None

                def wake(self):
                    log.append("woken")

                async def run(self):
                    log.append("ran")
                    self.departed = await how(self)

            async def close():
                await trio.lowlevel.checkpoint()
                log.append("closed")

            monkeypatch.setattr(reception, "open_sockets", lambda offer: warned)
            monkeypatch.setattr(reception, "new_session", lambda offer, **_: Driver().session)
            monkeypatch.setattr(reception, "ClientDriver", Made)
            writer = SimpleNamespace(worker=SimpleNamespace(close=close))
            monkeypatch.setattr(reception, "BlockWriter", lambda *_: writer)
            await test.reception._transfer(test.reception.offer, sink)

        return begin

    async def test_a_file_gets_what_waits_for_it_when_the_client_is_removed(self, run, log):
        test = Test()

        async def kicked(driver):
            assert not hasattr(driver.session.application, "horizon")
            return Departed(Left.KICKED, KickReason.FAIL)

        with pytest.raises(RemovedError):
            await run(test, kicked)
        assert log == ["ran", "closed"]
        assert [event.message for event in test.told] == ["small for reading", "small for sending"]

    async def test_a_pipe_is_let_go_of_before_its_writer_is_waited_for(self, run, log):
        sink = Piped()
        sink.reach = 2500

        async def kicked(driver):
            assert driver.session.application.horizon == 2
            return Departed(Left.KICKED, KickReason.FAIL)

        with pytest.raises(RemovedError):
            await run(Test(target=sink), kicked)
        assert log == ["ran", "abandoned", "closed"]

    @pytest.mark.parametrize("sink", [MemorySink(), Piped()], ids=["file", "pipe"])
    async def test_who_has_stored_everything_finishes_and_then_leaves_as_complete(
        self, run, log, sink, mock_clock
    ):
        left = trio.Event()

        async def stored(driver):
            def leave(why, _):
                assert sink.finished
                log.append(why)
                left.set()

            driver.session.leave = leave
            mock_clock.jump(3)
            test.reception._stored.set()
            await left.wait()
            await trio.testing.wait_all_tasks_blocked()
            return Departed(Left.COMPLETE)

        test = Test(target=sink)
        with trio.fail_after(PATIENCE):
            await run(test, stored)
        assert log == ["ran", Left.COMPLETE, "woken", "closed"]
        assert test.reception._done_at == test.reception._start + 3
        assert test.reception.whole

    async def test_a_driver_is_given_what_was_asked_for_and_a_time_to_join(self, run, mock_clock):
        test = Test(cache_bytes=77_000, drop_share=0.25, drop_seed=5, timeout=9.0)
        given = {}
        begun = trio.current_time()

        async def complete(driver):
            given.update(driver.options)
            return Departed(Left.COMPLETE)

        await run(test, complete)
        assert (given["cache_bytes"], given["drop_share"], given["drop_seed"]) == (77_000, 0.25, 5)
        assert given["on_turn"] == test.reception._turn
        assert test.reception._join_by == begun + 9


class TestTheEnd:
    async def test_a_result_has_the_time_of_everything_and_the_rate_of_what_came(self, mock_clock):
        mock_clock.jump(50)
        test = Test()
        mock_clock.jump(2)
        test.reception.joined(9)
        mock_clock.jump(4)
        test.reception._done_at = trio.current_time()
        mock_clock.jump(1)
        assert test.reception.result() == ReceiveResult(
            target="memory",
            size=10_000,
            seconds=7.0,
            bytes_per_second=2500.0,
            loss=0.25,
            duplicates=4,
            refused=3,
            dropped={"field": 5, "stale": 6},
        )

    async def test_content_that_came_in_no_time_has_no_rate(self, mock_clock):
        test = Test()
        test.reception.joined(9)
        assert test.reception.result().bytes_per_second == 0.0

    @pytest.fixture
    def offers(self, monkeypatch):
        """Makes receptions find an offer at once; what they asked with."""
        asked = []

        def give(offer):
            async def find(server, **options):
                asked.append((server, options))
                return offer

            monkeypatch.setattr(reception, "find_offer", find)
            return asked

        return give

    async def test_content_of_no_bytes_is_whole_without_joining(self, offers, mock_clock):
        asked, told = offers(offered(0)), Events()
        wanted = settings(interface="lo")
        result = await Reception(wanted, told).run()
        assert result == ReceiveResult(
            target="memory",
            size=0,
            seconds=0.0,
            bytes_per_second=0.0,
            loss=0.0,
            duplicates=0,
            refused=0,
            dropped={},
        )
        assert wanted.target.finished
        ((server, options),) = asked
        assert callable(options.pop("on_silence"))
        assert (server, options) == (
            HOST,
            {"port": 5041, "namespace": "images", "content": "image", "interface": "lo", "timeout": 5.0},
        )
        initiated, finished = told
        assert initiated == Initiated(
            seconds=0.0,
            server=(HOST, 6001),
            group=("239.192.83.1", 6001),
            interface=str(find_interface("lo")),
            session_id=7,
            size=0,
            block_size=BLOCK,
            total_blocks=0,
        )
        assert finished == Finished(seconds=0.0, target="memory", size=0)

    async def test_a_cache_must_take_a_block_with_what_is_around_it(self, offers):
        offers(offered(0))
        await Reception(settings(cache_bytes=BLOCK + 13), Events()).run()
        with pytest.raises(UsageError, match=f"cache of {BLOCK + 12} bytes .* {BLOCK + 13} at least"):
            await Reception(settings(cache_bytes=BLOCK + 12), Events()).run()

    @pytest.mark.parametrize(
        ("error", "notes"),
        [(StorageError("full"), ["What arrived is kept in image.part."]), (ValueError("a fault"), [])],
        ids=["storage", "a fault"],
    )
    async def test_what_a_failed_reception_keeps_is_told_and_noted(self, offers, error, notes):
        class Failing(MemorySink):
            def prepare(self):
                raise error

            def abandon(self):
                return Path("image.part")

        offers(offered(0))
        told = Events()
        failed = Reception(settings(target=Failing()), told)
        with pytest.raises(type(error)) as caught:
            await failed.run()
        assert getattr(caught.value, "__notes__", []) == notes
        assert [event.part for event in told.of(Kept)] == ["image.part"]
        assert failed.kept == Path("image.part")
        assert not failed.whole
        assert told.of(Finished) == []

    async def test_where_nothing_is_kept_nothing_is_said_of_it(self, offers):
        class Failing(MemorySink):
            def prepare(self):
                raise StorageError("full")

        offers(offered(0))
        told = Events()
        with pytest.raises(StorageError) as caught:
            await Reception(settings(target=Failing()), told).run()
        assert [type(event) for event in told] == [Initiated]
        assert getattr(caught.value, "__notes__", []) == []
