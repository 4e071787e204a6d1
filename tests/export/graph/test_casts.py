"""The choice with the fewest casts, against trying every choice."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denseport.export.graph.casts import fewest_casts

NODES = 7
Tensors = list[tuple[int, list[int]]]


def casts(tensors: Tensors, wide: set[int]) -> int:
    return sum(any((user in wide) != (producer in wide) for user in users) for producer, users in tensors)


nodes = st.integers(0, NODES - 1)
tensors_of = st.lists(st.tuples(nodes, st.lists(nodes, max_size=4)), max_size=9)


@settings(deadline=None)
@given(tensors=tensors_of, fixed=st.dictionaries(nodes, st.booleans(), max_size=4))
def test_no_choice_needs_fewer_casts(tensors: Tensors, fixed: dict[int, bool]) -> None:
    found = fewest_casts(tensors, fixed)
    assert all((node in found) == wide for node, wide in fixed.items())
    choices = [{n for n in range(NODES) if bits[n]} for bits in product([False, True], repeat=NODES)]
    allowed = [choice for choice in choices if all((n in choice) == wide for n, wide in fixed.items())]
    best = min((casts(tensors, choice), len(choice)) for choice in allowed)
    assert (casts(tensors, found), len(found)) == best


WIDE, NARROW, A, B, C = range(5)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([(NARROW, [A]), (A, [NARROW])], set()),
        ([(WIDE, [A]), (A, [WIDE])], {A}),
        ([(WIDE, [A]), (A, [WIDE, NARROW])], {A}),  # one cast behind the move, not one on each side
        ([(WIDE, [A, B, C]), (A, [NARROW]), (B, [NARROW]), (C, [NARROW])], set()),  # one cast before three moves
    ],
    ids=["narrow", "wide", "late", "early"],
)
def test_where_the_cast_goes(tensors: Tensors, expected: set[int]) -> None:
    assert fewest_casts(tensors, {WIDE: True, NARROW: False}) == expected | {WIDE}
