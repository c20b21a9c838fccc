"""Time from answers of the API server: exact to their resolution, and not trusted after a jump."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from videotrain_operator.cluster.clock import BELIEVE_SECONDS, CONFIRM_SECONDS, Clock

START = datetime(2026, 3, 1, tzinfo=UTC)


class Server:
    """Answers with whole seconds, as HTTP's Date does, after a moment on the way."""

    def __init__(self) -> None:
        self.monotonic, self.jump = 1000.0, 0.0
        self.clock = Clock(lambda: self.monotonic)

    @property
    def true(self) -> datetime:
        return START + timedelta(seconds=self.monotonic - 1000.0)

    def answer(self, after: float, there: float = 0.01, back: float = 0.01) -> None:
        self.monotonic += after
        sent = self.monotonic
        self.monotonic += there
        told = (self.true + timedelta(seconds=self.jump)).replace(microsecond=0)
        self.monotonic += back
        self.clock.note(told, sent, self.monotonic)

    def confirm(self, seconds: float = CONFIRM_SECONDS + 1) -> None:
        end = self.monotonic + seconds
        while self.monotonic < end:
            self.answer(1.3)


@pytest.fixture
def server() -> Server:
    server = Server()
    server.confirm()
    assert not server.clock.untrusted
    return server


def off(server: Server) -> float:
    return (server.clock.now() - server.true).total_seconds()


def test_without_an_answer_there_is_no_time():
    with pytest.raises(RuntimeError, match="no answer"):
        Clock().now()
    assert Clock().untrusted


def test_one_answer_tells_the_time_but_is_not_believed_yet():
    server = Server()
    server.answer(0.7)
    assert abs(off(server)) <= 1.1
    server.monotonic += 10 * CONFIRM_SECONDS
    assert server.clock.untrusted, "time that goes by confirms nothing"
    server.answer(0.1)
    assert not server.clock.untrusted


@pytest.mark.parametrize("seed", range(20))
def test_many_answers_tell_it_much_better_than_a_second_and_never_too_late(seed):
    randomness, server = random.Random(seed), Server()
    before = None
    for _ in range(60):
        server.answer(randomness.uniform(0.1, 4), randomness.uniform(0.001, 0.3), randomness.uniform(0.001, 0.3))
        assert off(server) <= 0.001
        assert before is None or server.clock.now() >= before
        before = server.clock.now()
    assert off(server) > -0.5 and not server.clock.untrusted


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0, 3.5, -3.5, 10 * 365 * 86_400.0])
def test_one_wrong_answer_moves_nothing_and_is_untrusted(server, jump):
    server.jump = jump
    server.answer(1)
    assert abs(off(server)) < 0.5 and "jumped" in server.clock.untrusted
    server.jump = 0.0
    server.answer(1)
    assert abs(off(server)) < 0.5 and server.clock.untrusted
    server.confirm()
    assert abs(off(server)) < 0.5 and not server.clock.untrusted


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_jump_that_stays_is_believed_in_the_end(server, jump):
    server.jump = jump
    server.confirm(BELIEVE_SECONDS - 10)
    assert server.clock.untrusted and abs(off(server)) < 0.5
    server.confirm(30)
    assert not server.clock.untrusted and off(server) == pytest.approx(jump, abs=0.5)


def test_servers_that_differ_for_ever_stop_nothing_for_ever(server):
    believed = 0
    for turn in range(3000):
        server.jump = 60.0 * (turn % 2)
        server.answer(1)
        believed += not server.clock.untrusted
        assert abs(off(server)) < 1.0
    assert believed


def test_a_first_answer_that_was_wrong_is_dropped_soon():
    server = Server()
    server.jump = 86_400.0
    server.answer(1)
    server.jump = 0.0
    server.answer(1)
    assert server.clock.untrusted
    server.confirm()
    assert not server.clock.untrusted and abs(off(server)) < 0.5
