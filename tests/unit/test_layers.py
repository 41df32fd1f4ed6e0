"""Layer ids, their tags and their columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmr_monitor_callbacks.errors import LayerError
from cmr_monitor_callbacks.layers import Layout, layer_id, layer_order, layer_tag, matches


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (4, 4),
        ("4", "4"),
        ("encoder.2", "encoder.2"),
        (np.int64(7), 7),
        (torch.tensor(7), 7),
        (True, "True"),
        (1.0, "1.0"),
        ((1, 2), "(1, 2)"),
    ],
)
def test_ids(given: object, expected: object) -> None:
    got = layer_id(given)  # type: ignore[arg-type]
    assert (type(got), got) == (type(expected), expected)


@pytest.mark.parametrize(
    ("layer", "tag"),
    [
        (0, "layer_00"),
        (9, "layer_09"),
        (10, "layer_10"),
        (100, "layer_100"),
        ("encoder.layers.2", "layer_encoder.layers.2"),
        ("a/b c", "layer_a_b_c"),
    ],
)
def test_tags(layer: int | str, tag: str) -> None:
    assert layer_tag(layer) == tag


def test_integers_by_value_then_strings_by_text() -> None:
    assert sorted(["b", 10, 9, "a", 0], key=layer_order) == [0, 9, 10, "a", "b"]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", 4, True),
        ("4", 4, True),
        ("4", 44, False),
        ("4|6|1*", 12, True),
        ("4 | 6", 6, True),
        ("4|6|1*", 5, False),
        ("encoder.*", "encoder.2", True),
        ("Encoder.*", "encoder.2", False),
        ("[46]", 6, True),
        ("blocks[0]", "blocks[0]", True),
        ("2|blocks[0]", "blocks[0]", True),
        ("a|b", "a|b", True),
    ],
)
def test_globs(pattern: str, text: object, expected: bool) -> None:
    assert matches(pattern, text) is expected


def test_columns_are_given_in_order_of_arrival_and_stay() -> None:
    layout = Layout([6])
    assert [layout.column(x) for x in (None, 6, 4, "x", 4, 6, np.int64(4))] == [
        0,
        1,
        2,
        3,
        2,
        1,
        2,
    ]
    assert layout.layers == tuple(layout) == (6, 4, "x")
    assert layout.width == 4


@pytest.mark.parametrize(("first", "second"), [("a b", "a/b"), (4, "04"), ((1, 2), "(1, 2) ")])
def test_ids_that_would_look_alike(first: object, second: object) -> None:
    layout = Layout([first])  # type: ignore[list-item]
    with pytest.raises(LayerError, match=r"would both be shown as 'layer_.*'; rename one"):
        layout.column(second)  # type: ignore[arg-type]
    assert layout.width == 2
