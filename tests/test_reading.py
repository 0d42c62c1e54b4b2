"""Files read ahead: in order, each once, and not all at once."""

import threading

import pytest

from minos_ray.reading import READERS, ahead


def test_names_come_in_order_with_what_was_read_and_few_wait() -> None:
    names, started, lock = [f"{number:04d}" for number in range(300)], [0], threading.Lock()

    def read(name: str) -> str:
        with lock:
            started[0] += 1
        return name * 2

    found = []
    for name, text in ahead(read, names):
        found.append((name, text))
        assert started[0] <= len(found) + 2 * READERS
    assert found == [(name, name * 2) for name in names]


def test_several_are_read_at_once() -> None:
    meet = threading.Barrier(READERS, timeout=20)
    assert len(list(ahead(lambda name: meet.wait(), [str(n) for n in range(READERS)]))) == READERS


def test_an_error_comes_where_its_file_would() -> None:
    def read(name: str) -> str:
        if name == "b":
            raise OSError("torn")
        return name

    files = ahead(read, ["a", "b", "c"])
    assert next(files) == ("a", "a")
    with pytest.raises(OSError, match="torn"):
        next(files)
