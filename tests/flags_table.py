"""The tables of docs/flags.md, made from the code. `python tests/flags_table.py` writes them there anew."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from kept import ROOT
from typer.main import get_command

from medsft.cli.app import app
from medsft.core.config.options import flag, format_number
from medsft.core.config.run_config import GROUPS, RunConfig

PAGE = ROOT / "docs/flags.md"
BEGIN, END = "<!-- flags: made by tests/flags_table.py -->\n", "<!-- end of flags -->\n"


def flags_section() -> str:
    """Return the flags of a run by group, then those of `medsft sft` alone."""
    parts = []
    for group, title in GROUPS.items():
        rows = [_row(flag(f.name), _default(f), f.metadata["help"]) for f in fields(RunConfig) if f.metadata["group"] == group]
        parts.append(_table(title, rows))
    known = {f.name for f in fields(RunConfig)}
    own = [p for p in get_command(app).commands["sft"].params if p.name not in known]  # type: ignore[attr-defined]
    parts.append(_table("Command", [_row(", ".join(p.opts), "", p.help) for p in own if p.name != "help"]))
    return "\n".join(parts)


def _table(title: str, rows: list[str]) -> str:
    return f"**{title}**\n\n| flag | default | |\n|---|---|---|\n" + "".join(rows)


def _row(flags: str, default: str, text: str) -> str:
    return f"| `{flags}` | {default} | {text.replace('|', chr(92) + '|').replace('<', '&lt;')} |\n"


def _default(f: Field[Any]) -> str:
    choices = [f"**{choice}**" if choice == f.default else choice for choice in f.metadata["choices"]]
    if choices:
        return ", ".join(choices)
    if f.default in (None, "", ()) or f.default is False:
        return ""
    value = format_number(f.default) if isinstance(f.default, float) else f.default
    of_adapter = f.metadata["with_adapter"]
    notes = [f.metadata["unit"], "" if of_adapter is None else f"with an adapter {format_number(of_adapter)}"]
    noted = ", ".join(filter(None, notes))
    return f"{value} ({noted})" if noted else str(value)


def split(page: str) -> tuple[str, str, str]:
    """Return what stands before, between and after the marks."""
    before, rest = page.split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


if __name__ == "__main__":
    head, _, tail = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{head}\n{flags_section()}\n{tail}", encoding="utf-8")
