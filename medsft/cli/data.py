"""`medsft tokenize` and `medsft inspect`: what becomes of the files of rows."""

from __future__ import annotations

import json as to_json
from collections.abc import Mapping, Sequence
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
    from medsft.core.data.dataset.samples import Sample, SamplePart
    from medsft.core.data.dataset.spec import InputFile
    from medsft.core.data.sources.row_format import RowFormats
    from medsft.core.data.tokenizers.base import Tokenizer

TokenizerPath = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="A folder or a tokenizer.model, instead of --checkpoint and --size."),
]
_STYLES = {"SYSTEM": ("yellow",), "QUESTION": ("cyan", "blue"), "ANSWER": ("green", "magenta"), "TEXT": ("green",)}
"""Of the turns of a conversation in turn."""
_SHOWN_TURNS = 8


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
        counted["rows"] = _rows_record(recipe.rows, recipe.inputs)
    return counted | {"warnings": _sentences(name, sets)}


def _rows_record(rows: RowFormats, inputs: Sequence[InputFile]) -> dict[str, Any] | list[dict[str, Any]]:
    """Return how rows were read; where files have formats of their own, a list with that of each."""
    if not isinstance(rows, tuple):
        return {"format": rows.name, **rows.to_json()}
    return [{"file": file.path, "format": of.name, **of.to_json()} for file, of in zip(inputs, rows, strict=True)]


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
    tokens: Annotated[bool, typer.Option("--tokens", help="Show each token with its weight.")] = False,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Show documents as the model will read them, with roles and loss weights, and how they fit --seq."""
    from medsft.cli.stages import note_rows
    from medsft.core.data.dataset.lengths import length_report
    from medsft.core.data.dataset.samples import first_positions
    from medsft.core.data.dataset.samples import samples as decode
    from medsft.core.data.dataset.subset import Reading, as_read
    from medsft.core.settings import load_settings
    from medsft.core.workflow import spec_for

    sets = _sets(config, tokenizer, settings, plain)
    opened = spec_for(config, load_settings(settings), tokenizer=tokenizer).open_tokenizer()
    if not json:
        note_rows(config)
    records = []
    of_token = opened.tokenizer if tokens else None
    for name, data in sets.items():
        report = length_report(data, config.seq, turns=config.turns, whole_turns=config.rules.cuts_whole_turns)
        read = as_read(data.outlines, Reading.of(config))
        shown = decode(data, opened.tokenizer, read, first_positions(read, start, samples))
        if json:
            record = {"name": name, **_report_record(report), **_findings_record(name, sets)}
            records.append(record | {"samples": [_sample_record(s, config, of_token) for s in shown]})
            continue
        for sample in shown:
            _print_sample(sample, config, of_token)
        console.print_table((name, ""), _report_rows(report, config))
        _print_findings(name, sets)
    if json:
        console.print_json(records)


def _sample_record(sample: Sample, config: RunConfig, of_token: Tokenizer | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    place = sample.start
    for part in sample.parts:
        record = {
            "role": part.role.name.lower(),
            "turn": part.turn,
            "weight": part.weight(config.loss_mask),
            "tokens": part.tokens,
            "text": part.text,
        }
        if part.cut:
            record["cut"] = True
        if of_token is not None:
            record["each"] = [
                {"place": place, "id": id_, "weight": weight, "text": text}
                for place, id_, weight, text in _each_token(sample, part, place, config, of_token)
            ]
        parts.append(record)
        place += part.tokens
    return {"document": sample.document, "tokens": sample.length, "start": sample.start, "parts": parts}


def _each_token(
    sample: Sample, part: SamplePart, place: int, config: RunConfig, tokenizer: Tokenizer
) -> list[tuple[int, int, float, str]]:
    """Return (place in the document, id, weight, text) of the tokens of a part, whose first has the place `place`.

    The first token of what is read has no weight: no other predicts it.
    """
    from medsft.core.data.dataset.samples import token_texts

    weight = part.weight(config.loss_mask)
    texts = token_texts(tokenizer, part.ids)
    return [
        (here, id_, weight if here > sample.start else 0.0, text)
        for here, (id_, text) in enumerate(zip(part.ids, texts, strict=True), place)
    ]


def _print_sample(sample: Sample, config: RunConfig, of_token: Tokenizer | None = None) -> None:
    """Print a document part by part. Turn, role and weight are words first, so that nothing depends on colors."""
    from rich.text import Text

    from medsft.core.printable import printable

    out = console.result_console()
    out.print(Text(sample.title(config.seq), style="bold"))
    place = sample.start
    for part in sample.parts:
        styles, weight = _STYLES[part.role.name], part.weight(config.loss_mask)
        style = styles[(part.turn - 1) % len(styles)]
        said = "cut away" if part.cut else f"weight {weight:g}"
        out.print(Text(f"  {sample.label(part)}, {said}", style="italic"))
        if of_token is None:
            out.print(Text(printable(part.text), style=style if weight else f"dim {style}"))
        else:
            for here, id_, each, text in _each_token(sample, part, place, config, of_token):
                shown = printable(to_json.dumps(text, ensure_ascii=False))
                out.print(Text(f"{here:>8} {id_:>8}  {each:<4g} {shown}", style=style if each else f"dim {style}"))
        place += part.tokens
    out.print()


def _report_record(report: LengthReport) -> dict[str, Any]:
    record = asdict(report)
    return record | {"tokens_by_role": {role.name.lower(): n for role, n in report.tokens_by_role.items()}}


def _report_rows(report: LengthReport, config: RunConfig) -> list[tuple[str, str]]:
    """Return (what, value) of the length report; what can only be said of turns and texts where there are any."""
    from medsft.core.units import count, counted

    roles = ", ".join(f"{role.name.lower()} {count(tokens)}" for role, tokens in report.tokens_by_role.items() if tokens)
    lengths = ", ".join(f"{percent} %: {count(tokens)}" for percent, tokens in report.percentiles.items())
    in_turns = len(report.turns) > 1 or 1 not in report.turns
    turns = [("turns of conversations", _listed(report.turns))] if report.turns and in_turns else []
    from_turn = [("cut with --truncate keep from turn", _listed(report.cut_from_turn))] if report.cut_from_turn else []
    texts = [("texts, in pieces of --seq", f"{count(report.texts)}, in {counted(report.text_pieces, 'piece')}")]
    return [
        ("documents", count(report.documents)),
        ("tokens", f"{count(report.tokens)} ({roles})"),
        ("length", f"{count(report.shortest)} to {count(report.longest)}, mean {report.mean:,.1f}"),
        ("length percentiles", lengths),
        *turns,
        *(texts if report.texts else []),
        (f"longer than --seq {report.seq}", count(report.exceeding)),
        ("answers that would lose tokens", count(report.answers_cut)),
        ("answers that would lose their end", count(report.answers_without_end)),
        ("answers that would be lost whole", count(report.answers_lost)),
        *from_turn,
        ("documents without an answer token to train on", count(report.unsupervised)),
        (f"answer tokens to train on (--turns {config.turns})", count(report.trained)),
        ("--seq at which nothing is cut", count(report.fitting_seq)),
    ]


def _listed(numbers: Mapping[int, int]) -> str:
    """Return `1: 120, 2: 30` of a number of turns and documents; of many the first few."""
    from medsft.core.units import count

    shown = [f"{turn}: {count(documents)}" for turn, documents in list(numbers.items())[:_SHOWN_TURNS]]
    rest = sum(list(numbers.values())[_SHOWN_TURNS:])
    return ", ".join([*shown, f"more: {count(rest)}"] if rest else shown)
