"""What several threads share."""

from __future__ import annotations

from builder.parallel import Once, Stop, for_each


def test_what_several_threads_need_is_made_once() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        Stop().sleep(0.05)  # so that the others ask while it is made
        return made[0]

    once, found = Once(make), set[object]()
    assert for_each(lambda _: found.add(once()), range(8), 8, Stop()) == []
    assert made == [*found]


def test_what_could_not_be_made_is_tried_again() -> None:
    answers = iter((ValueError("not yet"), None))

    def make() -> None:
        if error := next(answers):
            raise error

    once = Once(make)
    assert [str(error) for error in for_each(lambda _: once(), (1,), 1, Stop())] == ["not yet"]
    assert once() is None
    assert once() is None  # None was made, and is not made again
