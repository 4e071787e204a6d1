from __future__ import annotations

import threading
import time
from collections.abc import Hashable

import pytest

from denseport.runtime.backends.pool import Pool


class Item:
    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Maker:
    def __init__(self) -> None:
        self.made: list[Item] = []

    def __call__(self, key: Hashable) -> Item:
        self.made.append(Item(key))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(not item.closed for item in self.made)


def test_one_thread_gets_the_same_object_again() -> None:
    make = Maker()
    pool = Pool(make, 2)
    for _ in range(3):
        with pool.take("a") as item:
            assert item.key == "a"
    assert len(make.made) == 1
    pool.close()
    assert make.open == 0


def test_a_new_key_takes_the_place_of_the_longest_idle() -> None:
    make = Maker()
    pool = Pool(make, 2)
    for key in ("a", "b", "a", "c"):
        with pool.take(key) as item:
            assert item.key == key
    assert [(item.key, item.closed) for item in make.made] == [("a", False), ("b", True), ("c", False)]


def test_an_object_whose_user_failed_is_not_used_again() -> None:
    make = Maker()
    pool = Pool(make, 1)
    with pytest.raises(ValueError, match="broken"), pool.take():
        raise ValueError("broken")
    assert make.made[0].closed
    with pool.take() as item:
        assert item is make.made[1]


def test_one_that_cannot_be_made_leaves_its_place_free() -> None:
    def fail(key: Hashable) -> Item:
        raise MemoryError

    pool = Pool(fail, 1)
    for _ in range(2):
        with pytest.raises(MemoryError), pool.take():
            pass


def test_threads_share_without_meeting() -> None:
    make = Maker()
    pool = Pool(make, 3)
    using: set[int] = set()
    errors: list[str] = []

    def work(seed: int) -> None:
        for turn in range(20):
            with pool.take((seed + turn) % 5) as item:
                if id(item) in using or item.closed or item.key != (seed + turn) % 5:
                    errors.append("two threads had one object, or a closed one, or another key's")
                using.add(id(item))
                time.sleep(0.0002)
                using.discard(id(item))
            if make.open > 3:
                errors.append(f"{make.open} at once")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="a pool of 0"):
        Pool(Maker(), 0)
