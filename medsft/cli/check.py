"""`medsft check`: a look at rows before anything is trained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsft.cli import console
from medsft.cli.flags import Json, Plain, takes_row_options
from medsft.core.config.run_config import RunConfig

if TYPE_CHECKING:
    from medsft.core.data.check.clean import CleanFiles
    from medsft.core.data.check.report import CheckReport

_SHOWN_PLACES = 3


@takes_row_options
def check(
    config: RunConfig,
    *,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Files of rows, as after --data.", show_default=False)
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="PATH...", help="Files that the rows must not overlap with, such as benchmarks."),
    ] = None,
    ngram: Annotated[
        int, typer.Option("--ngram", metavar="N", min=2, max=50, help="Words in a run when rows are compared for overlap.")
    ] = 8,
    write_clean: Annotated[
        Path | None,
        typer.Option("--write_clean", metavar="DIR", help="Write the rows without faults into this new folder, as JSONL."),
    ] = None,
    without_identifiers: Annotated[
        bool, typer.Option("--without_identifiers", help="With --write_clean: leave out rows with identifiers, too.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 when there are errors.")] = False,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Look at rows before training: repeats, overlap, contradictions, languages, odd answers, identifiers.

    Shows how many rows there are of each kind and where the first are, never their text.
    """
    from medsft.cli.stages import note_rows, tokenizing
    from medsft.core.data.check.check import check_rows
    from medsft.core.data.check.clean import refuse_folder
    from medsft.core.data.check.clean import write_clean as write
    from medsft.core.data.dataset.findings import given_twice
    from medsft.core.data.sources.open import no_rows
    from medsft.core.workflow import check_request
    from medsft.errors import ConfigError, DataError, Problem

    if without_identifiers and write_clean is None:
        raise ConfigError([Problem("--without_identifiers", "nothing is written", "It belongs to --write_clean DIR.")])
    if write_clean is not None:
        refuse_folder(write_clean)
    config = replace(config, data=(*config.data, *(files or ())))
    request = check_request(config, against=tuple(against or ()), ngram=ngram)
    with tokenizing(plain=plain) as progress:
        report = check_rows(request, progress=progress)
    if not report.rows:
        raise no_rows(request.files)
    for line in given_twice([str(path) for path in request.files], [path.resolve() for path in request.files], "FILE"):
        console.note(f"warning: {line}")
    if not json:
        note_rows(config)
    if strict and report.not_checked:
        raise ConfigError([Problem("--strict", sentence) for sentence in report.not_checked])
    clean = None if write_clean is None else write(report, write_clean, with_identifiers=not without_identifiers)
    if json:
        console.print_json(report.to_json() | ({"clean": clean.to_json()} if clean else {}))
    else:
        _print(report, clean)
    if strict and report.errors:
        raise DataError(f"{report.errors:,} of {report.rows:,} rows have errors")


def _print(report: CheckReport, clean: CleanFiles | None) -> None:
    from medsft.core.units import count, counted

    console.say(f"{counted(report.rows, 'row')}, {count(report.errors)} of them with errors")
    for flag, rows in report.compared.items():
        console.say(f"compared with {counted(rows, 'row')} of {flag}")
    if report.found:
        lines = []
        for kind, found in report.found.items():
            places = [f"{row} (like {like})" if like else row for row, like in found.places(report.places, _SHOWN_PLACES)]
            more = ["..."] if len(found.rows) > _SHOWN_PLACES else []
            what = "error" if kind.error else "remark"
            lines.append((count(len(found.rows)), what, f"rows that {kind.means}", ", ".join([*places, *more])))
        console.print_table(("rows", "", "found", "the first are"), lines, numbers=(0,))
    for reason, rows in report.reasons.items():
        console.say(f"{counted(rows, 'row')}: {reason}")
    if report.advice:
        console.say(report.advice)
    if report.languages:
        told = ", ".join(f"{code or 'not sure'} {count(rows)}" for code, rows in report.languages.items())
        console.say(f"languages: {told}")
    for sentence in report.not_checked:
        console.note(f"warning: {sentence}")
    if clean is not None:
        for name, rows in clean.files.items():
            console.say(f"{clean.folder / name}: {counted(rows, 'row')}")
        why = ", ".join(f"{name} {count(rows)}" for name, rows in clean.reasons.items())
        console.say(f"left out: {counted(clean.left_out, 'row')}" + (f" ({why})" if why else ""))
