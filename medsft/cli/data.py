"""`medsft tokenize` and `medsft inspect`: what becomes of the JSONL files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsft.cli import console
from medsft.cli.flags import Json, Plain, SettingsFile, takes_config
from medsft.core.config.run_config import RunConfig

if TYPE_CHECKING:
    from medsft.core.data.dataset.dataset import TokenizedDataset
    from medsft.core.data.dataset.lengths import LengthReport
    from medsft.core.data.dataset.samples import Sample

TokenizerPath = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="A folder or a tokenizer.model, instead of --checkpoint and --size."),
]
_STYLES = {"SYSTEM": "yellow", "QUESTION": "cyan", "ANSWER": "green", "TEXT": "green"}


@takes_config
def tokenize(
    config: RunConfig,
    *,
    tokenizer: TokenizerPath = None,
    settings: SettingsFile = None,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Make the tokenized set of a run, and that of its validation files.

    An existing set is reused when its inputs have not changed.
    """
    from medsft.cli.stages import note_rows
    from medsft.core.units import counted

    sets = _sets(config, tokenizer, settings, plain)
    if not json:
        note_rows(config)
    asked = {next(iter(sets)): _shares(config, next(iter(sets.values())))}
    for name, data in sets.items():
        facts = {"name": name, "folder": data.folder, "documents": data.num_documents, "tokens": data.num_tokens}
        skipped = sum(data.manifest.bad_rows.values())
        if json:
            facts |= {"skipped": skipped, "special_in_text": data.manifest.special_in_text}
            facts |= {"input_documents": data.manifest.input_documents}
            console.print_json(facts | _findings_record(name, sets))
            continue
        console.say(f"{data.folder}: {counted(data.num_documents, 'document')}, {counted(data.num_tokens, 'token')}")
        for line in asked.get(name, ()):
            console.say(line)
        for reason, rows in data.manifest.bad_rows.items():
            console.note(f"warning: {counted(rows, 'row')} skipped: {reason}")
        if data.manifest.special_in_text:
            console.note(f"{counted(data.manifest.special_in_text, 'special string')} inside rows (--special_in_text).")
        _print_findings(name, sets)


def _sets(config: RunConfig, tokenizer: Path | None, settings: Path | None, plain: bool) -> dict[str, TokenizedDataset]:
    """Make or check the sets of a run and return them by name, the training set first."""
    from medsft.cli.stages import tokenizing
    from medsft.core.data.dataset.dataset import open_tokenized
    from medsft.core.planning.sets import has_validation_set, training_folder, validation_folder
    from medsft.core.settings import load_settings
    from medsft.core.workflow import tokenize_sets

    with tokenizing(plain=plain) as progress:
        tokenize_sets(config, load_settings(settings), tokenizer=tokenizer, progress=progress)
    folders = [training_folder(config), *([validation_folder(config)] if has_validation_set(config) else [])]
    return {folder.name: open_tokenized(folder) for folder in folders}


def _shares(config: RunConfig, train: TokenizedDataset) -> list[str]:
    """Return what the shares of `--data` and `--val` mean for this training set, before `--truncate`, a line for each."""
    from medsft.core.planning.selection import divided
    from medsft.core.text.plan import share_text
    from medsft.core.units import counted

    val, mixture = divided(config, train)
    lines = [f"  --val {config.val_share:g}: {counted(val, 'document')} to validate on"] if config.val_share is not None else []
    return lines + [
        f"  {path}: {share_text(share, part.taken, part.documents)}"
        for path, share, part in zip(config.data_files, config.shares, mixture, strict=bool(mixture))
    ]


def _sentences(name: str, sets: Mapping[str, TokenizedDataset]) -> list[str]:
    """Return what a person should know of the rows of one of the sets, though they can be used."""
    from medsft.core.data.dataset.findings import overlap, overlap_sentence

    train, data = next(iter(sets.values())), sets[name]
    if data is train:
        return [*data.manifest.notes, *data.manifest.remarks("--data")]
    repeats = overlap_sentence(overlap(train.row_hashes, data.row_hashes), data.num_documents)
    return [*data.manifest.notes, *data.manifest.remarks("--val"), *repeats]


def _findings_record(name: str, sets: Mapping[str, TokenizedDataset]) -> dict[str, Any]:
    findings = sets[name].manifest.findings
    counted = {} if findings is None else {"repeated": findings.repeated, "unused_text": dict(findings.unused_text)}
    if (recipe := sets[name].manifest.recipe) is not None:
        counted["rows"] = {"format": recipe.rows.name, **recipe.rows.to_json()}
    return counted | {"warnings": _sentences(name, sets)}


def _print_findings(name: str, sets: Mapping[str, TokenizedDataset]) -> None:
    for sentence in _sentences(name, sets):
        console.note(f"warning: {sentence}")


@takes_config
def inspect(
    config: RunConfig,
    *,
    tokenizer: TokenizerPath = None,
    settings: SettingsFile = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=0, help="Documents to show of each set.")] = 3,
    start: Annotated[int, typer.Option("--start", metavar="N", min=0, help="Number of the first document to show.")] = 0,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Show documents as the model will read them, with roles and loss weights, and how they fit --seq."""
    from medsft.cli.stages import note_rows
    from medsft.core.data.dataset.lengths import length_report
    from medsft.core.data.dataset.samples import samples as decode
    from medsft.core.settings import load_settings
    from medsft.core.workflow import spec_for

    sets = _sets(config, tokenizer, settings, plain)
    opened = spec_for(config, load_settings(settings), tokenizer=tokenizer).open_tokenizer()
    if not json:
        note_rows(config)
    records = []
    for name, data in sets.items():
        report = length_report(data, config.seq)
        shown = decode(data, opened.tokenizer, range(start, min(start + samples, data.num_documents)))
        if json:
            record = {"name": name, **_report_record(report), **_findings_record(name, sets)}
            records.append(record | {"samples": [_sample_record(s, config) for s in shown]})
            continue
        for sample in shown:
            _print_sample(sample, config)
        console.print_table((name, ""), _report_rows(report))
        _print_findings(name, sets)
    if json:
        console.print_json(records)


def _sample_record(sample: Sample, config: RunConfig) -> dict[str, Any]:
    parts = [
        {
            "role": part.role.name.lower(),
            "weight": part.role.loss_weight(config.loss_mask),
            "tokens": part.tokens,
            "text": part.text,
        }
        for part in sample.parts
    ]
    return {"document": sample.document, "tokens": sample.length, "parts": parts}


def _print_sample(sample: Sample, config: RunConfig) -> None:
    """Print a document part by part. Weight and role are words first, so that nothing depends on colors."""
    from rich.text import Text

    from medsft.core.printable import printable
    from medsft.core.units import counted

    out = console.result_console()
    over = sample.length - 1 - config.seq
    cut = f", {over} more than --seq {config.seq}" if over > 0 else ""
    out.print(Text(f"document {sample.document}: {counted(sample.length, 'token')}{cut}", style="bold"))
    for part in sample.parts:
        role, weight = part.role.name, part.role.loss_weight(config.loss_mask)
        style = _STYLES[role] if weight else f"dim {_STYLES[role]}"
        out.print(Text(f"  {role.lower()}, {counted(part.tokens, 'token')}, weight {weight:g}", style="italic"))
        out.print(Text(printable(part.text), style=style))
    out.print()


def _report_record(report: LengthReport) -> dict[str, Any]:
    record = asdict(report)
    return record | {"tokens_by_role": {role.name.lower(): n for role, n in report.tokens_by_role.items()}}


def _report_rows(report: LengthReport) -> list[tuple[str, str]]:
    """Return (what, value) of the length report."""
    from medsft.core.units import count

    roles = ", ".join(f"{role.name.lower()} {count(tokens)}" for role, tokens in report.tokens_by_role.items() if tokens)
    lengths = ", ".join(f"{percent} %: {count(tokens)}" for percent, tokens in report.percentiles.items())
    return [
        ("documents", count(report.documents)),
        ("tokens", f"{count(report.tokens)} ({roles})"),
        ("length", f"{count(report.shortest)} to {count(report.longest)}, mean {report.mean:,.1f}"),
        ("length percentiles", lengths),
        (f"longer than --seq {report.seq}", count(report.exceeding)),
        ("answers that would lose tokens", count(report.answers_cut)),
        ("answers that would lose their end", count(report.answers_without_end)),
        ("documents without an answer token to train on", count(report.unsupervised)),
        ("--seq at which nothing is cut", count(report.fitting_seq)),
    ]
