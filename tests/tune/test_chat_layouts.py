"""Layouts of conversations: every one keeps every word and is found by its own markers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from ggufround.tune.chat_layouts import LAYOUTS, find_layout, render


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_writes_its_own_markers_and_every_word(layout: Any) -> None:
    turns = [("system", "be {kind}"), ("human", "question"), ("gpt", "answer"), ("function", "result"), ("judge", "?")]
    text = render(turns, layout)
    assert all(marker in text for marker in layout.markers if marker != "[gMASK]")
    positions = [text.index(content) for _, content in turns]
    assert positions == sorted(positions)
    assert "{}" not in text
    assert find_layout(set(layout.markers).__contains__, "") == layout


def test_no_layout_hides_a_later_one() -> None:
    for early, late in combinations(LAYOUTS, 2):
        assert not set(early.markers) <= set(late.markers)


def test_the_template_decides_where_several_layouts_fit() -> None:
    both = {marker for layout in LAYOUTS if layout.name in ("ChatML", "Gemma") for marker in layout.markers}
    chosen = find_layout(both.__contains__, "{{'<start_of_turn>' + role}} ... {{'<end_of_turn>'}}")
    assert chosen is not None
    assert chosen.name == "Gemma"


def test_a_system_prompt_without_a_turn_of_its_own_joins_the_users() -> None:
    gemma = next(layout for layout in LAYOUTS if layout.name == "Gemma")
    assert render([("system", "S"), ("user", "U")], gemma) == "<start_of_turn>user\nS\n\nU<end_of_turn>\n"
    assert render([("system", "S")], gemma) == "<start_of_turn>user\nS<end_of_turn>\n"
