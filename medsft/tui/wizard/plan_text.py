"""The plan as text: for the side panel, the strip below a narrow screen, and the pages. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.content import Content

from medsft.core.config.options import format_number
from medsft.core.config.row_options import QA
from medsft.core.config.run_config import RunConfig
from medsft.core.text.adapter import kind_bars
from medsft.core.text.plan import MEMORY_PARTS, Row, plan_rows
from medsft.core.units import byte_size, count, counted, duration, short_count
from medsft.errors import Problem
from medsft.tui.wizard.paths import near

if TYPE_CHECKING:
    from medsft.core.data.dataset.lengths import LengthReport
    from medsft.core.data.sources.columns import KeyProposal
    from medsft.core.data.sources.recognize import RecognizedFiles
    from medsft.core.planning.plan import Estimates, RunPlan
    from medsft.tui.wizard.backend import BaseEntry, Outlook

_SIGNS = (("█", "$primary"), ("▓", "$secondary"), ("▒", "$accent"), ("░", "$success"), ("▪", "$text-muted"))
"""Of `MEMORY_PARTS`, in their order."""


def memory_bar(estimates: Estimates, width: int) -> Content:
    """Draw memory per rank against the device: each part has a sign of its own, and its size below."""
    memory, limit = estimates.memory, estimates.device_memory
    scale = max(limit, memory.total, 1)
    fits = memory.total <= limit
    bar: list[Content | str] = []
    used = 0
    for name, (sign, color) in zip(MEMORY_PARTS, _SIGNS, strict=True):
        cells = round(getattr(memory, name) / scale * width)
        cells = min(cells, width - used)
        bar.append(Content.styled(sign * cells, color))
        used += cells
    bar.append(Content.styled("·" * (width - used), "$text-muted"))
    verdict = "fits" if fits else "✖ does not fit"
    bar += [
        "\n",
        Content.styled(f"{byte_size(memory.total)} of {byte_size(limit)}: {verdict}", "bold" if fits else "bold $error"),
    ]
    for name, (sign, color) in zip(MEMORY_PARTS, _SIGNS, strict=True):
        bar += ["\n", Content.styled(sign, color), f" {name:<12}{byte_size(getattr(memory, name)):>10}"]
    return Content.assemble(*bar)


def kinds_text(plan: RunPlan | None) -> Content:
    """Return what each kind of training needs in memory beside one another; nothing before there is a plan."""
    if plan is None:
        return Content("")
    lines: list[Content | str] = []
    for kind, bar, needs in kind_bars(plan):
        style = ("bold" if kind.chosen else "") if kind.memory <= plan.estimates.device_memory else "$error"
        mark = "●" if kind.chosen else "○"
        lines += ["\n" if lines else "", Content.styled(f"{mark} {kind.name:<12}{bar} {needs}", style)]
    return Content.assemble(*lines)


def panel(outlook: Outlook | None, problems: Sequence[Problem], width: int) -> Content:
    """Return the whole outlook for the side."""
    parts: list[Content | str] = []
    if outlook is None:
        parts += ["Looking ...\n"]
    elif outlook.plan is not None:
        for row in rows_of(outlook):
            if row.brief:
                parts += [Content.styled(row.label, "$text-muted"), f"\n  {row.value}\n"]
        parts += [Content.styled("memory per rank", "$text-muted"), "\n", memory_bar(outlook.plan.estimates, width), "\n"]
        parts += [Content.styled(f"! {warning}\n", "$warning") for warning in outlook.plan.warnings]
    if problems:
        parts += [Content.styled(f"\n✖ {counted(len(problems), 'problem')}\n", "bold $error")]
        parts += [Content.styled(f"{p.where} ", "bold") + Content(f"{_unindented(p.message)}\n") for p in problems]
    return Content.assemble(*parts)


def rows_of(outlook: Outlook) -> list[Row]:
    """Return the rows of the plan as far as it stands."""
    if outlook.plan is None:
        return []
    return plan_rows(outlook.plan, outlook.forecast, outlook.disk_free, show_path=lambda path: str(near(Path(path))))


def strip(outlook: Outlook | None, problems: Sequence[Problem]) -> Content:
    """Return the outlook in two lines, for screens without room for the panel."""
    first = "Looking ..."
    if outlook is not None and outlook.plan is not None:
        plan = outlook.plan
        estimates = plan.estimates
        fits = "" if estimates.memory.total <= estimates.device_memory else " (does not fit)"
        memory = f"{byte_size(estimates.memory.total)} of {byte_size(estimates.device_memory)} per rank{fits}"
        first = f"{counted(plan.num_iterations, 'iteration')} · {memory} · disk {byte_size(estimates.disk_needed)}"
        if outlook.forecast:
            first += f" · about {duration(outlook.forecast.seconds)}"
    elif outlook is not None:
        first = "No plan yet"
    if problems:
        amount = f"{counted(len(problems), 'problem')}; " if len(problems) > 1 else ""
        second = Content.styled(f"✖ {amount}{problems[0].where}: {problems[0].message}".splitlines()[0], "$error")
    else:
        second = Content.styled("✔ Ready to start", "$success") if outlook else Content("")
    return Content.assemble(first, "\n", second)


def iterations_text(outlook: Outlook | None) -> Content:
    """Return the sum behind the number of iterations, as a person confirms it."""
    if outlook is None or outlook.plan is None:
        return Content("Choose a base model and a dataset to see the number of iterations.")
    plan, config = outlook.plan, outlook.config
    documents = counted(plan.train.documents, "document") + ("" if outlook.exact else " (estimated)")
    if config.iters is None:
        epochs, batch = counted(config.epochs, "epoch"), counted(plan.global_batch, "document")
        asked = f"{documents} x {epochs} / {batch} = {counted(plan.num_iterations, 'iteration')}"
        multiple = config.rules.iterations_multiple
        rule = f"Rounded up to a multiple of {multiple}." if multiple else "Rounded up."
    else:
        asked = f"{counted(config.iters, 'iteration')}, as you entered"
        rule = f"That is {counted(plan.epochs, 'epoch')} over {documents}."
    return Content.assemble(Content.styled(asked, "bold"), f"\n{rule}")


def meaning(outlook: Outlook | None) -> str:
    """Return what the number of iterations means in epochs, time and checkpoints."""
    if outlook is None or outlook.plan is None:
        return ""
    plan = outlook.plan
    lines = [f"{counted(plan.epochs, 'epoch')}: {short_count(plan.train.tokens * plan.epochs)} tokens in all."]
    lines += [f"{row.label.capitalize()}: {row.text}." for row in rows_of(outlook) if row.label in ("time", "checkpoints")]
    if outlook.forecast:
        lines.append(f"An iteration takes {duration(outlook.forecast.seconds / plan.num_iterations)} on average.")
    return "\n".join(lines)


def keys_text(keys: KeyProposal | None, found: RecognizedFiles | None) -> Content:
    """Return the keys of the first file's rows with a text, and which of those that are read as one is not among them."""
    if keys is None or not keys.keys:
        return Content("")
    first = None if found is None else found.each[0].rows
    read = first.keys if first is not None and first.name == QA else None
    chosen = () if read is None else (read.question, read.answer, read.system)
    missing = [f"`{key}`" for key in chosen if key and key not in keys.keys]
    text = f"Keys in these rows: {', '.join(keys.keys)}"
    return Content.styled(f"! Not in all of these rows: {', '.join(missing)}. {text}", "$warning") if missing else Content(text)


def report_text(report: LengthReport | None, truncate: str) -> Content:
    """Return how the documents fit --seq, and how many answers would be cut, or are by --truncate."""
    if report is None:
        return Content(
            "Not tokenized yet. Press k outside a field, or the button, to tokenize and to see which documents are too long."
        )
    lengths = (
        f"{counted(report.documents, 'document')} of {count(report.shortest)} to {counted(report.longest, 'token')}; "
        f"half have at most {count(report.percentiles[50])}, 95 % at most {count(report.percentiles[95])}.\n"
    )
    lines: list[Content | str] = [lengths]
    if report.exceeding:
        cut, endless = counted(report.answers_cut, "answer"), count(report.answers_without_end)
        mark, then = {
            "drop": ("!", "they are left out, as chosen."),
            "keep": ("!", f"they are cut, as chosen: {cut} would lose tokens, {endless} their end."),
        }.get(truncate, ("✖", f"cutting them would take tokens from {cut}, and the end from {endless}."))
        text = f"{mark} {counted(report.exceeding, 'document')} longer than seq {count(report.seq)}: {then}"
        if in_turns := sum(report.cut_from_turn.values()):
            text += f" Of several turns, {counted(in_turns, 'conversation')}: whole turns go first, from the end."
        lines.append(Content.styled(text, "bold $warning"))
    else:
        lines.append(Content.styled(f"✔ All fit seq {count(report.seq)}.", "$success"))
    if report.text_pieces > report.texts:
        texts = f"\n{counted(report.texts, 'text')}: read in {counted(report.text_pieces, 'piece')} of at most seq tokens."
        lines.append(texts)
    return Content.assemble(*lines)


def entry_text(entry: BaseEntry, chosen: bool) -> Content:
    """Return a base model in two lines."""
    mark = "●" if chosen else "○"
    head = Content.styled(f"{mark} {entry.name} {format_number(entry.size)}B", "bold")
    if entry.base is None:
        problem = entry.problem.replace(str(entry.path), str(near(entry.path)))
        return Content.assemble(head, Content.styled(f"\n    ✖ {problem}", "$error"))
    base, model = entry.base, entry.base.config
    facts = [base.kind if base.adapter is None else f"adapter of rank {base.adapter.lora.rank} over {base.kind}"]
    if model is not None:
        facts += [model.family, f"{short_count(model.num_parameters())} parameters", f"vocabulary {count(model.vocab_size)}"]
    facts.append(byte_size(base.size_bytes))
    if base.iterations:
        facts.append(f"{counted(len(base.iterations), 'saved iteration')}, the latest {count(base.iterations[-1])}")
    where = str(near(entry.path)) if entry.listed else f"{near(entry.path)} (choosing it adds it to medsft.toml)"
    return Content.assemble(head, f"  {', '.join(facts)}\n", Content.styled(f"    {where}", "$text-muted"))


def node_lines(config: RunConfig) -> list[str]:
    """Return the command of each node, in the order of their ranks."""
    from medsft.core.cluster.scripts import node_commands

    return node_commands(config)


def beside(problems: Sequence[Problem]) -> str:
    """Return what is wrong with a field, for the place below it: a message of several lines keeps its list."""
    lines = []
    for problem in problems:
        first, *more = (line.strip() for line in problem.message.splitlines())
        lines += [f"✖ {first}", *(f"  {line}" for line in more)]
        hint = problem.hint[:1].upper() + problem.hint[1:]
        if more and hint:
            lines.append(f"  {hint}")
        elif hint:
            lines[-1] += f". {hint}"
    return "\n".join(lines)


def problem_lines(problems: Sequence[Problem]) -> Content:
    """Return all that blocks, each with its remedy."""
    if not problems:
        return Content.styled("✔ Ready to start.", "$success")
    parts: list[Content | str] = [Content.styled(f"✖ {counted(len(problems), 'problem')}", "bold $error")]
    for problem in problems:
        parts += ["\n  ", Content.styled(problem.where, "bold"), f" {_unindented(problem.message)}"]
        if problem.hint:
            parts.append(Content.styled(f"\n      {problem.hint}", "$text-muted"))
    return Content.assemble(*parts)


def _unindented(text: str) -> str:
    """Return the lines of a message with the indentation that a narrow place has room for."""
    return "\n    ".join(line.strip() for line in text.splitlines())


def plan_of(outlook: Outlook | None) -> RunPlan | None:
    """Return the plan, None while there is none."""
    return None if outlook is None else outlook.plan
