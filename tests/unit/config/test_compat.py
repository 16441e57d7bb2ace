"""`--compat` has one table: its rules differ from ours, each is read by some module, and no module asks another way."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import medsft
from medsft.core.config.compat import COMPAT_RULES, CompatRules
from medsft.core.config.run_config import RunConfig

PACKAGE = Path(medsft.__file__).parent
SOURCES = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "compat.py"}
RULES = [f.name for f in fields(CompatRules)]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_another_than_ours_and_is_read(rule: str) -> None:
    assert getattr(COMPAT_RULES["megatron-llm"], rule) != getattr(COMPAT_RULES["none"], rule)
    assert any(re.search(rf"\brules\.{rule}\b", source) for source in SOURCES.values())


def test_no_module_asks_for_the_name() -> None:
    asking = re.compile(r"\.compat\s*(==|!=|in\b|is\b)|[\"']megatron-llm[\"']")
    assert [path.name for path, source in SOURCES.items() if asking.search(source)] == []


def test_the_rules_of_a_config() -> None:
    assert RunConfig(compat="megatron-llm").rules is COMPAT_RULES["megatron-llm"]
    assert RunConfig().rules == RunConfig(compat="mega").rules == CompatRules()
