"""Jobs beside the model: in order, late only at first, and nothing lost or hidden."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from attnlens.capture import beside as module
from attnlens.capture.beside import Beside
from attnlens.capture.lenses.blocked import crew


@pytest.fixture(params=[True, False], ids=["threaded", "at once"])
def beside(request: pytest.FixtureRequest) -> Iterator[Beside]:
    made = Beside(threaded=request.param)
    yield made
    made.close()


def test_jobs_are_done_in_order_and_announced_when_all_before_are_done(beside: Beside) -> None:
    said: list[str] = []
    for number in range(20):
        beside.do(lambda number=number: said.append(f"do {number}"), 1)  # type: ignore[misc]
        if number % 5 == 4:
            beside.announce(lambda number=number: said.append(f"say {number}"))  # type: ignore[misc]
    beside.wait()
    assert [one for one in said if one.startswith("do")] == [f"do {number}" for number in range(20)]
    for place, one in enumerate(said):
        if one.startswith("say"):
            assert f"do {one[4:]}" in said[:place]
    assert said[-1] == "say 19"


def test_a_failure_reaches_who_brings_the_next_job(beside: Beside) -> None:
    def fail() -> None:
        raise ArithmeticError("broken")

    def bring() -> None:
        beside.do(fail, 0)
        beside.wait()

    with pytest.raises(ArithmeticError, match="broken"):
        bring()


def test_what_was_brought_is_done_and_announced_before_the_end(beside: Beside) -> None:
    """A model that fails while readings are late loses none of the rows that were whole."""
    said: list[str] = []
    beside.do(lambda: time.sleep(0.1), 0)
    beside.do(lambda: said.append("done"), 0)
    beside.announce(lambda: said.append("announced"))
    beside.close()
    assert said == ["done", "announced"]


def test_after_a_failure_no_job_is_begun_and_the_end_comes() -> None:
    beside, begin, said = Beside(threaded=True), threading.Event(), list[str]()

    def fail() -> None:
        begin.wait()
        raise ArithmeticError("broken")

    beside.do(fail, 0)
    beside.do(lambda: said.append("done"), 0)
    beside.announce(lambda: said.append("announced"))
    begin.set()
    beside.close()
    assert said == []


def test_the_model_waits_when_too_much_waits() -> None:
    beside, free = Beside(threaded=True), threading.Event()
    beside.do(free.wait, module.WAITING_BYTES)  # type: ignore[arg-type]
    waiting = threading.Thread(target=beside.do, args=(lambda: None, 1))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert not crew().beside  # every core for those who read
    free.set()
    waiting.join(10)
    assert not waiting.is_alive()
    beside.close()


def test_the_first_announcement_waits_until_jobs_have_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0.05)
    beside, said = Beside(threaded=True), list[str]()
    beside.do(lambda: time.sleep(0.2), 1)
    beside.announce(lambda: said.append("first"))
    beside.do(lambda: time.sleep(0.2), 1)
    beside.announce(lambda: said.append("second"))
    time.sleep(0.25)
    assert said == []  # a job of 0.25 s ago is not done
    beside.wait()
    assert said == ["second"]
    started = time.monotonic()
    beside.do(lambda: time.sleep(0.2), 1)
    beside.do(lambda: None, 1)
    assert time.monotonic() - started < 10
    beside.announce(lambda: said.append("third"))
    beside.wait()
    assert said == ["second", "third"]
    beside.close()


def test_torch_leaves_a_core_and_takes_it_back() -> None:
    count = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        beside = Beside(threaded=True)
        with beside.sharing():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        beside.close()
        at_once = Beside(threaded=False)
        with at_once.sharing():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(count)


def test_readings_that_another_thread_joins_are_the_same() -> None:
    threads, together = crew(), threading.Barrier(2, timeout=10)
    if threads.count == 1:
        torch.set_num_threads(2)
        threads = crew()
    try:
        threads.beside = True
        taken: list[int] = []

        def work() -> int:
            together.wait()
            taken.append(1)
            return len(taken)

        result: list[list[int]] = []
        walk = threading.Thread(target=lambda: result.append(threads.all(work)))  # type: ignore[arg-type]
        walk.start()
        time.sleep(0.1)
        assert not taken  # one alone waits for the other
        threads.beside = False
        walk.join(10)
        assert sorted(result[0]) == [1, 2] or sorted(result[0]) == [2, 2]
    finally:
        threads.beside = False
        torch.set_num_threads(1)


class Told:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int | None, str]] = []
        self.done = 0

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        self.said.append((name, total, unit))

    def advance(self, amount: int = 1, note: str = "") -> None:
        assert amount >= 0
        self.done += amount

    def end(self) -> None:
        raise AssertionError("the stage is not the last")


def test_a_long_wait_for_the_last_readings_is_a_stage_and_a_short_one_is_not(beside: Beside) -> None:
    short, long = Told(), Told()
    beside.do(lambda: None, 0)
    beside.wait(short)
    assert short.said == []
    for _ in range(8):
        beside.do(lambda: time.sleep(0.1), 0)
    beside.wait(long)
    if beside._thread is None:
        assert long.said == []
        return
    ((name, left, unit),) = long.said
    assert (name, unit) == ("lens", "blocks")
    assert left is not None
    assert 0 < left < 8
    assert long.done == left
