"""The import graph of medsft by rooms: `python tests/import_graph.py` prints it, `--dot` as a graph for graphviz.

A room is a folder of modules with the folders in it that are a part of the same subject (`formats/megatron`, `kernels/cpu`), or
a module that stands alone in `core`. An arrow from one room to another means that a module of the first imports one of the
second, at the top, inside a function or for types alone.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from kept import ROOT

PACKAGE = ROOT / "medsft"
INNER = {"medsft.core.engine.formats.megatron", "medsft.core.engine.kernels.cpu", "medsft.core.engine.kernels.cuda"}
"""Packages that are a part of the room around them."""
Arrows = dict[str, set[str]]


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Return every module under its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Iterable[str]) -> Iterator[str]:
    """Yield the modules of `known` that the module imports, wherever in it the import stands."""
    known = set(known)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if target in known else node.module for target in targets]
        else:
            continue
        yield from (target for target in targets if target in known and target != name)


def room_of(module: str, packages: Iterable[str]) -> str:
    """Return the folder that the module lies in; a module that stands alone in `core` is a room of its own."""
    parent = module.rpartition(".")[0]
    if module in INNER or parent in INNER:
        return room_of(parent, packages)
    if module in packages:
        return module
    return module if parent in ("medsft", "medsft.core") else parent


def rooms() -> Arrows:
    """Return for each room the other rooms that it imports."""
    paths = modules()
    packages = {name for name, path in paths.items() if path.name == "__init__.py"}
    found: Arrows = {room_of(name, packages): set() for name in paths}
    for name, path in paths.items():
        room = room_of(name, packages)
        found[room] |= {room_of(target, packages) for target in imports(name, path, paths)} - {room}
    return found


def module_arrows() -> Arrows:
    """Return for each module the modules that it imports."""
    paths = modules()
    return {name: set(imports(name, path, paths)) for name, path in paths.items()}


def circles(arrows: Arrows) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def main() -> None:
    """Print the rooms with their arrows, and the circles."""
    arrows = rooms()
    if "--dot" in sys.argv:
        lines = [f'  "{room}" -> "{target}";' for room, targets in sorted(arrows.items()) for target in sorted(targets)]
        print("digraph medsft {", *lines, "}", sep="\n")
        return
    sizes: dict[str, int] = defaultdict(int)
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    for name in modules():
        sizes[room_of(name, packages)] += name not in packages
    for room, targets in sorted(arrows.items()):
        print(f"{room} ({sizes[room]}) -> {', '.join(sorted(targets)) or 'nothing'}")
    print(f"{len(arrows)} rooms, {sum(map(len, arrows.values()))} arrows")
    for what, graph in (("rooms", arrows), ("modules", module_arrows())):
        found = circles(graph)
        print(f"circles of {what}: {len(found)}", *(" <-> ".join(circle) for circle in found), sep="\n  ")


if __name__ == "__main__":
    main()
