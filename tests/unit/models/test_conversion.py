"""`Conversion` is the only description of `medsft convert`: flags, limits and the argument of its process follow from it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from medsft.cli.app import app
from medsft.core.models.conversion import Conversion
from medsft.errors import ConfigError

FULL = Conversion(
    source=Path("a b"), destination=Path("new"), to="megatron", tp=2, verify=False, optimizer=True, rope_theta=1e6, iteration=0
)


@pytest.mark.parametrize("conversion", [FULL, Conversion(source=Path("a"), destination=Path("b"), to="hf")])
def test_the_process_gets_what_was_asked_for(conversion: Conversion) -> None:
    assert Conversion.from_json(conversion.to_json()) == conversion


def test_each_field_is_a_parameter_of_the_command() -> None:
    command = get_command(app).commands["convert"]  # type: ignore[attr-defined]
    assert {p.name for p in command.params} == {*(f.name for f in fields(Conversion)), "json"}
    assert {p.name for p in command.params if p.required} == {"source", "destination", "to"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("to", "onnx", "is not one of hf, megatron, dcp"),
        ("to", "gguf", "llama.cpp/convert_hf_to_gguf.py"),
        ("tp", "0", "Must be 1 or more."),
        ("tp", "x", "must be a whole number"),
        ("norm_eps", "0", "Must be above 0."),
        ("rope_theta", "inf", "is not a finite number"),
        ("as_iteration", "-1", "Must be 0 or more."),
    ],
)
def test_a_wrong_value_is_named_under_its_flag(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Conversion.of({"source": "a", "destination": "b", "to": "hf", name: value})
    assert [problem.where for problem in caught.value.problems] == [f"--{name}"]
    assert words in str(caught.value)
