from __future__ import annotations

import threading
from functools import partial

import pytest
from tests.kernels.blas import numpy_blas_threads

from quantkit.errors import UsageError
from quantkit.llama4.forward.team import Team


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_every_task_runs_once(n_threads: int) -> None:
    team, done, seen = Team(n_threads), [], set()
    both = threading.Barrier(min(2, n_threads), timeout=10)

    def task(number: int) -> None:
        if number < both.parties:
            both.wait()  # two tasks that need each other end, so two threads are at work
        seen.add(threading.get_ident())
        done.append(number)

    team.run(partial(task, number) for number in range(200))
    assert sorted(done) == list(range(200))
    assert min(2, n_threads) <= len(seen) <= n_threads
    team.run([])
    team.close()


def test_the_first_error_is_raised_after_all_have_ended() -> None:
    team, done = Team(3), []

    def task(number: int) -> None:
        done.append(number)
        if number in (4, 7):
            raise ValueError(number)

    with pytest.raises(ValueError, match="4"):
        team.run(partial(task, number) for number in range(20))
    assert sorted(done) == list(range(20))
    team.close()


def test_blas_has_one_thread_at_work() -> None:
    before = numpy_blas_threads()
    with Team(2).at_work():
        assert numpy_blas_threads() == {1}
    assert numpy_blas_threads() == before


def test_number_of_threads() -> None:
    assert Team(0).n_threads >= 1
    with pytest.raises(UsageError):
        Team(-1)
