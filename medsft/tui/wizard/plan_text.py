"""The plan as text: for the side panel, the strip below a narrow screen, and the pages. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from medsft.core.config import RunConfig
from medsft.core.options import format_number
from medsft.core.units import byte_size, count, duration, short_count
from medsft.errors import Problem
from medsft.tui.wizard.paths import near

if TYPE_CHECKING:
    from medsft.core.data.dataset.lengths import LengthReport
    from medsft.core.data.dataset.write import Progress
    from medsft.core.data.sources.columns import KeyProposal
    from medsft.core.planning.plan import Estimates, RunPlan
    from medsft.tui.wizard.backend import BaseEntry, Outlook

_PARTS = (
    ("weights", "█", "$primary"),
    ("gradients", "▓", "$secondary"),
    ("optimizer", "▒", "$accent"),
    ("activations", "░", "$success"),
    ("process", "▪", "$text-muted"),
)


def memory_bar(estimates: Estimates, width: int) -> Content:
    """Draw memory per rank against the device: each part has a sign of its own, and its size below."""
    memory, limit = estimates.memory, estimates.device_memory
    scale = max(limit, memory.total, 1)
    fits = memory.total <= limit
    bar: list[Content | str] = []
    used = 0
    for name, sign, colour in _PARTS:
        cells = round(getattr(memory, name) / scale * width)
        cells = min(cells, width - used)
        bar.append(Content.styled(sign * cells, colour))
        used += cells
    bar.append(Content.styled("·" * (width - used), "$text-muted"))
    verdict = "fits" if fits else "✖ does not fit"
    bar += [
        "\n",
        Content.styled(f"{byte_size(memory.total)} of {byte_size(limit)}: {verdict}", "bold" if fits else "bold $error"),
    ]
    for name, sign, colour in _PARTS:
        bar += ["\n", Content.styled(sign, colour), f" {name:<12}{byte_size(getattr(memory, name)):>10}"]
    return Content.assemble(*bar)


def panel(outlook: Outlook | None, problems: Sequence[Problem], width: int) -> Content:
    """Return the whole outlook for the side."""
    parts: list[Content | str] = []
    if outlook is None:
        parts += ["Looking ...\n"]
    elif outlook.plan is not None:
        for label, value in plan_rows(outlook):
            parts += [Content.styled(label, "$text-muted"), f"\n  {value}\n"]
        parts += [Content.styled("memory per rank", "$text-muted"), "\n", memory_bar(outlook.plan.estimates, width), "\n"]
        parts += [Content.styled(f"! {warning}\n", "$warning") for warning in outlook.plan.warnings]
    if problems:
        parts += [Content.styled(f"\n✖ {len(problems)} to settle\n", "bold $error")]
        parts += [Content.styled(f"{p.where} ", "bold") + Content(f"{_unindented(p.message)}\n") for p in problems]
    return Content.assemble(*parts)


def plan_rows(outlook: Outlook) -> list[tuple[str, str]]:
    """Return (what, value) of what a person decides by."""
    plan = outlook.plan
    if plan is None:
        return []
    estimates = plan.estimates
    about = "" if outlook.exact else "about "
    guess = outlook.forecast
    time = f"about {duration(guess.seconds)}, {guess.basis}" if guess else "known after the first steps"
    return [
        ("iterations", f"{count(plan.num_iterations)} ({plan.epochs:.3g} epochs)"),
        ("documents", f"{about}{count(plan.train.documents)}, {about}{short_count(plan.train.tokens)} tokens"),
        ("layout", f"{plan.layout}, {plan.precision}"),
        ("micro-batches", f"{plan.num_micro_batches} of {plan.micro_batch} documents per rank"),
        ("time", time),
        ("disk", f"{byte_size(estimates.disk_needed)} of {byte_size(outlook.disk_free)} free"),
    ]


def strip(outlook: Outlook | None, problems: Sequence[Problem]) -> Content:
    """Return the outlook in two lines, for screens without room for the panel."""
    first = "Looking ..."
    if outlook is not None and outlook.plan is not None:
        plan = outlook.plan
        estimates = plan.estimates
        fits = "" if estimates.memory.total <= estimates.device_memory else " (does not fit)"
        memory = f"{byte_size(estimates.memory.total)} of {byte_size(estimates.device_memory)} per rank{fits}"
        first = f"{count(plan.num_iterations)} iterations · {memory} · disk {byte_size(estimates.disk_needed)}"
        if outlook.forecast:
            first += f" · about {duration(outlook.forecast.seconds)}"
    elif outlook is not None:
        first = "No plan yet"
    if problems:
        amount = f"{len(problems)} to settle; " if len(problems) > 1 else ""
        second = Content.styled(f"✖ {amount}{problems[0].where}: {problems[0].message}".splitlines()[0], "$error")
    else:
        second = Content.styled("✔ nothing stands in the way", "$success") if outlook else Content("")
    return Content.assemble(first, "\n", second)


def iterations_text(outlook: Outlook | None) -> Content:
    """Return the sum behind the number of iterations, as a person confirms it."""
    if outlook is None or outlook.plan is None:
        return Content("The number of iterations follows when base model and dataset are chosen.")
    plan, config = outlook.plan, outlook.config
    documents = count(plan.train.documents) + ("" if outlook.exact else " (estimated)")
    epochs, batch = format_number(config.epochs), plan.global_batch
    if config.iters is None:
        asked = f"{documents} documents x {epochs} epochs / {batch} documents = {count(plan.num_iterations)} iterations"
        rule = f"rounded up to a multiple of {multiple}" if (multiple := config.rules.iterations_multiple) else "rounded up"
    else:
        asked = f"{count(config.iters)} iterations, as you entered"
        rule = f"that is {plan.epochs:.3g} epochs over {documents} documents"
    return Content.assemble(Content.styled(asked, "bold"), f"\n{rule}")


def meaning(outlook: Outlook | None) -> str:
    """Return what the number of iterations means in epochs, time and checkpoints."""
    if outlook is None or outlook.plan is None:
        return ""
    plan, config = outlook.plan, outlook.config
    saves = -(-plan.num_iterations // config.save_interval)
    lines = [
        f"The model reads each document {plan.epochs:.3g} times, {short_count(plan.train.tokens * plan.epochs)} tokens in all."
    ]
    if outlook.forecast:
        each = outlook.forecast.seconds / plan.num_iterations
        lines.append(f"About {duration(outlook.forecast.seconds)}, {outlook.forecast.basis}: {each:.3g} s an iteration.")
    else:
        lines.append("The time is known after the first steps of a run on this machine.")
    lines.append(f"A checkpoint every {count(config.save_interval)} iterations: {saves} in all.")
    return "\n".join(lines)


def keys_text(found: KeyProposal | None, config: RunConfig) -> Content:
    """Return the keys of the rows, and which of the chosen ones is not among them."""
    if found is None or not found.keys:
        return Content("")
    chosen = (config.question_key, config.answer_key, config.system_key)
    missing = [f"`{key}`" for key in chosen if key and key not in found.keys]
    text = f"Keys in these rows: {', '.join(found.keys)}"
    return Content.styled(f"! Not in all of these rows: {', '.join(missing)}. {text}", "$warning") if missing else Content(text)


def report_text(report: LengthReport | None, truncate: str) -> Content:
    """Return how the documents fit --seq, and how many answers would be cut, or are by --truncate."""
    if report is None:
        return Content("Not tokenised yet. Press k (outside a field) or the button to tokenise and see what would be cut.")
    lengths = (
        f"{count(report.documents)} documents of {count(report.shortest)} to {count(report.longest)} tokens, "
        f"half of them up to {count(report.percentiles[50])}, 95 % up to {count(report.percentiles[95])}.\n"
    )
    lines: list[Content | str] = [lengths]
    if report.exceeding:
        cut, endless = count(report.answers_cut), count(report.answers_without_end)
        mark, then = {
            "drop": ("!", "they are dropped, as chosen."),
            "keep": ("!", f"they are cut, as chosen: {cut} answers lose a part, {endless} their end."),
        }.get(truncate, ("✖", f"{cut} answers would be cut, {endless} would lose their end."))
        text = f"{mark} {count(report.exceeding)} are longer than seq {count(report.seq)}; {then}"
        lines.append(Content.styled(text, "bold $warning"))
    else:
        lines.append(Content.styled(f"✔ all fit seq {count(report.seq)}", "$success"))
    return Content.assemble(*lines)


def entry_text(entry: BaseEntry, chosen: bool) -> Content:
    """Return a base model in two lines."""
    mark = "●" if chosen else "○"
    head = Content.styled(f"{mark} {entry.name} {format_number(entry.size)}B", "bold")
    if entry.base is None:
        problem = entry.problem.replace(str(entry.path), str(near(entry.path)))
        return Content.assemble(head, Content.styled(f"\n    ✖ {problem}", "$error"))
    base, model = entry.base, entry.base.config
    facts: list[str] = [base.kind]
    if model is not None:
        facts += [model.family, f"{short_count(model.num_parameters())} parameters", f"vocabulary {count(model.vocab_size)}"]
    facts.append(byte_size(base.size_bytes))
    if base.iterations:
        facts.append(f"{len(base.iterations)} iterations, up to {count(base.iterations[-1])}")
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
        return Content.styled("✔ Nothing stands in the way of starting.", "$success")
    parts: list[Content | str] = [Content.styled(f"✖ To settle before it can start: {len(problems)}", "bold $error")]
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


def progress_text(progress: Progress) -> str:
    """Return how far tokenising is."""
    share = f"{progress.done_bytes / progress.total_bytes:.0%}" if progress.total_bytes else ""
    left = f", {duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"{progress.stage} {share} of {byte_size(progress.total_bytes)}{left}"
