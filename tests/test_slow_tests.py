"""The list of slow tests: made from measured durations, and matched by name."""

from __future__ import annotations

import pytest

from tests.slow_tests import is_slow, slow

DURATIONS = """
============================= slowest durations ==============================
0.70s call     tests/a/test_x.py::test_many[one]
0.60s call     tests/a/test_x.py::test_many[two-3]
0.90s call     tests/a/test_x.py::test_quick
9.00s setup    tests/test_y.py::test_first
3.00s call     tests/test_y.py::test_second
0.20s teardown tests/test_z.py::test_third
"""


def test_tests_that_take_long_and_files_with_long_fixtures_are_named() -> None:
    assert slow(DURATIONS.splitlines()) == ["tests/a/test_x.py::test_many", "tests/test_y.py"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("tests/a/test_x.py::test_many[four]", True),
        ("tests/a/test_x.py::test_many_more", False),
        ("tests/test_y.py::test_new", True),
        ("tests/test_z.py::test_third", False),
    ],
)
def test_parameters_do_not_count_and_a_file_is_all_its_tests(node: str, expected: bool) -> None:
    assert is_slow(node, frozenset(slow(DURATIONS.splitlines()))) == expected
