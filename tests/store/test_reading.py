"""Files read ahead: in order, each once, and not all at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from minos_ray.store import filesystem
from minos_ray.store.filesystem import READERS, prefetch


def test_names_come_in_order_with_what_was_read_and_few_wait() -> None:
    names, started, lock = [f"{number:04d}" for number in range(300)], [0], threading.Lock()

    def read(name: str) -> str:
        with lock:
            started[0] += 1
        return name * 2

    found = []
    for name, text in prefetch(read, names):
        found.append((name, text))
        assert started[0] <= len(found) + 2 * READERS
    assert found == [(name, name * 2) for name in names]


def test_several_are_read_at_once() -> None:
    meet = threading.Barrier(READERS, timeout=120)
    assert len(list(prefetch(lambda name: meet.wait(), [str(n) for n in range(READERS)]))) == READERS


def test_an_error_comes_where_its_file_would() -> None:
    def read(name: str) -> str:
        if name == "b":
            raise OSError("torn")
        return name

    files = prefetch(read, ["a", "b", "c"])
    assert next(files) == ("a", "a")
    with pytest.raises(OSError, match="torn"):
        next(files)


def test_after_an_error_nothing_else_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others that are read meanwhile come to their end when the rest has been called off."""
    begun: list[str] = []
    called_off = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            called_off.set()
            super().shutdown(wait)

    def read(name: str) -> str:
        begun.append(name)
        if name == "00":
            raise OSError("away")
        assert called_off.wait(60)
        return name

    monkeypatch.setattr(filesystem, "ThreadPoolExecutor", Pool)
    with pytest.raises(OSError, match="away"):
        list(prefetch(read, [f"{number:02d}" for number in range(2 * READERS)]))
    assert len(begun) < 2 * READERS
