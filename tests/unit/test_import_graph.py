"""No two modules, and no two rooms, import each other: each can be read, tested and replaced by itself."""

from __future__ import annotations

import import_graph


def test_no_module_and_no_room_is_a_part_of_a_circle() -> None:
    assert import_graph.circles(import_graph.module_arrows()) == []
    assert import_graph.circles(import_graph.rooms()) == []


def test_a_circle_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert import_graph.circles(arrows) == [["b", "c"]]
