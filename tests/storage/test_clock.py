"""The clock calls what is due, in time, and nothing that was called off."""

from __future__ import annotations

from threading import Event, active_count

from sparselens.storage.clock import Clock


def test_what_is_due_is_called_and_a_shorter_time_overtakes_a_longer_one() -> None:
    clock, order = Clock(), []
    done = Event()
    clock.start(30, lambda: order.append("late"))
    clock.start(0.05, lambda: order.append("second"))
    clock.start(0.01, lambda: order.append("first"))
    clock.start(0.09, done.set)
    assert done.wait(20)
    assert order == ["first", "second"]


def test_what_was_called_off_is_not_called() -> None:
    clock, called, done = Clock(), Event(), Event()
    clock.stop(clock.start(0.01, called.set))
    clock.start(0.05, done.set)
    assert done.wait(20)
    assert not called.is_set()
    clock.stop(10_000)  # calling off what is over does nothing


def test_many_need_one_thread() -> None:
    clock = Clock()
    before = active_count()
    for _ in range(50):
        clock.start(60, lambda: None)
    assert active_count() == before + 1
