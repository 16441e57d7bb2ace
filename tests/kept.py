"""Files that are kept for tests: cases that people met, outputs that must not change, projects of old versions."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
"""The repository."""
GOLDEN = TESTS / "golden"
ROW_CASES = TESTS / "cases" / "rows"
TEMPLATES = TESTS / "cases" / "templates"
OLD_PROJECTS = TESTS / "old"
