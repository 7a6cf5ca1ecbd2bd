"""What failing commands say, read: cause, innermost place in the workspace, tests."""

from __future__ import annotations

import pytest

from quantum_orchestrator.tasks.failures import Failure, Place, failed_tests, failures_in

FILES = {"shop.py", "tests/test_shop.py", "app/main.c"}


def path_of(name: str) -> str | None:
    path = name.removeprefix("/project/")
    return path if path in FILES else None


def read(output: str) -> list[Failure]:
    return failures_in(output, path_of)


TRACEBACK = """\
Traceback (most recent call last):
  File "/project/tests/test_shop.py", line 9, in <module>
    total([1])
  File "/project/shop.py", line 4, in total
    return resalt
  File "/usr/lib/python3.11/abc.py", line 3, in x
NameError: name 'resalt' is not defined. Did you mean: 'result'?
"""

PYTEST = """\
F.                                                                       [100%]
=================================== FAILURES ===================================
__________________________________ test_total __________________________________

    def test_total():
>       assert total([1, 2]) == 3
               ^^^^^^^^^^^^^

tests/test_shop.py:5:
_ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _

    def total(prices):
>       return resalt
E       NameError: name 'resalt' is not defined

shop.py:4: NameError
=========================== short test summary info ============================
FAILED tests/test_shop.py::test_total - NameError: name 'resalt' is not defined
1 failed, 1 passed in 0.02s
"""

ASSERTION = """\
    def test_total():
>       assert total([1, 2]) == 3
E       assert 2 == 3
E        +  where 2 = total([1, 2])

tests/test_shop.py:5: AssertionError
"""

COLLECTION = """\
==================================== ERRORS ====================================
_____________________ ERROR collecting tests/test_shop.py ______________________
tests/test_shop.py:1: in <module>
    from shop import total
E     File "/project/shop.py", line 1
E       def total(prices)
E                        ^
E   SyntaxError: expected ':'
=========================== short test summary info ============================
ERROR tests/test_shop.py
"""


def test_a_traceback_gives_its_cause_and_the_innermost_place_in_the_workspace() -> None:
    (failure,) = read(TRACEBACK)
    assert failure.kind == "NameError"
    assert failure.message == "name 'resalt' is not defined. Did you mean: 'result'?"
    assert failure.places == (Place("tests/test_shop.py", 9), Place("shop.py", 4))
    assert str(failure) == "shop.py:4: NameError: name 'resalt' is not defined. Did you mean: 'result'?"


def test_pytests_report_gives_the_same() -> None:
    (failure,) = read(PYTEST)
    assert (failure.kind, failure.message) == ("NameError", "name 'resalt' is not defined")
    assert failure.places == (Place("tests/test_shop.py", 5), Place("shop.py", 4))


def test_a_failed_assertion_says_what_was_asserted() -> None:
    (failure,) = read(ASSERTION)
    assert (failure.kind, failure.message, failure.place) == (
        "AssertionError",
        "assert 2 == 3",
        Place("tests/test_shop.py", 5),
    )


def test_a_module_that_cannot_be_collected_gives_the_line_that_cannot_be_parsed() -> None:
    (failure,) = read(COLLECTION)
    assert (failure.kind, failure.message, failure.place) == ("SyntaxError", "expected ':'", Place("shop.py", 1))


def test_what_compilers_and_linters_print_is_read_where_there_is_no_traceback() -> None:
    (failure,) = read("gcc main.c\napp/main.c:12:5: error: expected ';'\nother.c:1: no\nmake: failed\n")
    assert str(failure) == "app/main.c:12: error: expected ';'"


def test_each_failure_is_told_once() -> None:
    assert len(read(PYTEST + PYTEST + ASSERTION)) == 2


@pytest.mark.parametrize("output", ["", "it went wrong\n", "x" * 10_000, "12:30:05: started\n"])
def test_what_tells_of_no_failure_gives_none(output: str) -> None:
    assert read(output) == []


def test_the_tests_that_failed_are_those_of_the_summary() -> None:
    assert failed_tests(PYTEST + COLLECTION) == ["tests/test_shop.py::test_total", "tests/test_shop.py"]
    assert failed_tests("FAILED (errors=1)\n") == []
