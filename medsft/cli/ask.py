"""`medsft ask`: questions to a model, typed in a terminal or out of a file. The model is in an engine process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Iteration, Json, ModelPrecision, Plain, QuestionKey, RunsFolder, find_run
from medsft.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from medsft.core.evaluation.chat import Chat, Sampling
    from medsft.core.evaluation.model import ModelSource
    from medsft.core.evaluation.questions import Question
    from medsft.core.evaluation.requests import Precision

_ENDS = ("/quit", "/exit")
_ANEW = "/new"
_LEAST_COLUMNS = 80
"""Of a terminal in which two answers stand side by side."""


def ask(
    model: Annotated[str, typer.Argument(metavar="RUN|FOLDER|GGUF|ADAPTER", help="A run or its name, a model, or an adapter.")],
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="Without one: a conversation.")] = None,
    *,
    questions: Annotated[
        Path | None,
        typer.Option("--in", metavar="FILE", help="Answer the rows of this file, with a question or messages; needs --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="New file for these answers; nothing else is stored.")
    ] = None,
    question_key: QuestionKey = None,
    beside: Annotated[
        str | None, typer.Option("--with", metavar="base", help="Ask the base model of the run too, side by side.")
    ] = None,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option("--max_tokens", metavar="N", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, metavar="T", help="0: always the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top_p", min=0.01, max=1.0, metavar="P", help="Draw from the most likely tokens of this share.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn.")] = 1,
    precision: ModelPrecision = "auto",
    iteration: Iteration = None,
    save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Ask a model. In a terminal it is a conversation: /new begins another, /quit or Ctrl-D ends it, Ctrl-C an answer.

    Prompts are written with the template that the run was trained with. What is said is stored nowhere but in --out; answers
    to a file that a kill interrupts wait beside it for the same call.
    """
    _check(question, questions, out, beside, question_key, json=json)
    from medsft.core.evaluation.chat import Sampling
    from medsft.core.evaluation.model import find_base_of, find_model

    chosen = None if precision == "auto" else precision

    path = _path_of(model, save_checkpoint_dir)
    models = [find_model(path, iteration=iteration), *([find_base_of(path)] if beside else [])]
    for line in dict.fromkeys(line for each in models for line in each.notes):
        console.note(line)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if questions is not None and out is not None:
        from medsft.core.evaluation.questions import read_questions

        rows = read_questions(questions, system=system, question_key=question_key)
        _answer_file(models, rows, out, sampling, chosen, plain=plain)
    else:
        _talk(models, question, sampling, system, chosen, plain=plain, json=json)


def _check(
    question: str | None, questions: Path | None, out: Path | None, beside: str | None, question_key: str | None, *, json: bool
) -> None:
    from medsft.core.disk import refusal

    problems = []
    if beside not in (None, "base"):
        problems.append(Problem("--with", f"knows base, not {beside}"))
    if (questions is None) != (out is None):
        hint = "--out names a new file for the answers, such as answers.jsonl; --in the file with the questions."
        problems.append(Problem("--in" if out is None else "--out", "--in and --out go together", hint))
    if question is not None and questions is not None:
        problems.append(Problem("--in", "gives the questions: leave out the one on the command line"))
    if out is not None and out.exists():
        problems.append(Problem("--out", f"{out} exists already", "Choose another name, or move it away."))
    if out is not None and (trouble := refusal(out.parent)) is not None:  # before the answers are computed
        problems.append(Problem("--out", trouble.message))
    if question_key is not None and questions is None:
        problems.append(Problem("--question_key", "is for the rows of --in FILE"))
    if json and questions is not None:
        problems.append(Problem("--json", "--out is JSON already"))
    if problems:
        raise ConfigError(problems)


def _path_of(text: str, runs_folder: Path) -> Path:
    """Return the folder or file that a person means: a path, or the name of a run."""
    path = Path(text)
    return path.resolve() if path.exists() else find_run(text, runs_folder).path


def _answer_file(
    models: Sequence[ModelSource],
    rows: Sequence[Question],
    out: Path,
    sampling: Sampling,
    precision: Precision | None,
    *,
    plain: bool,
) -> None:
    import json

    from medsft.cli.models import busy
    from medsft.core.disk import writing_to
    from medsft.core.evaluation.chat import answers_to
    from medsft.core.files import write_atomically
    from medsft.core.units import counted
    from medsft.errors import ExitCode

    found = []
    kept = [out.with_name(f".{out.name}.{number}.answers") for number in range(len(models))]
    for model, keep in zip(models, kept, strict=True):
        with busy(f"{model.name}: answering {counted(len(rows), 'question')}", plain=plain), writing_to(out, ExitCode.USAGE):
            asked = [row.conversation for row in rows]
            found.append(dict(answers_to(model, asked, sampling, precision=precision, keep=keep)))
    lines = []
    for number, row in enumerate(rows):
        record = {"id": row.id, "question": row.conversation[-1].content, "answer": found[0][number]}
        record |= {"base_answer": found[1][number]} if len(found) > 1 else {}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with writing_to(out, ExitCode.USAGE):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, "".join(lines), replace=False)
        for keep in kept:
            keep.unlink(missing_ok=True)
    console.say(str(out))


def _talk(
    models: Sequence[ModelSource],
    question: str | None,
    sampling: Sampling,
    system: str,
    precision: Precision | None,
    *,
    plain: bool,
    json: bool,
) -> None:
    import sys

    from medsft.cli.models import busy
    from medsft.core.evaluation.chat import Chat, all_or_none

    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise ConfigError([Problem("QUESTION", "there is none", "Give one, or ask in a terminal.")])
    with ExitStack() as stack:
        chats = [stack.enter_context(Chat(model, sampling, system=system, precision=precision)) for model in models]
        with busy("loading", plain=plain or json):
            for chat in chats:
                chat.wait()
        if question is not None:
            if json:
                names = ("answer", "base_answer")
                answers = {name: "".join(chat.ask(question)).strip() for name, chat in zip(names, chats, strict=False)}
                console.print_json({"question": question, **answers})
            else:
                _show(chats, question, plain=plain)
            return
        for asked in _typed():
            if asked == _ANEW:
                for chat in chats:
                    chat.forget()
                console.note("A new conversation.")
            elif asked:
                try:
                    with all_or_none(chats):
                        _show(chats, asked, plain=plain)
                except DataError as error:
                    console.note(str(error))
                except KeyboardInterrupt:
                    console.note("\nStopped. This question is forgotten; Ctrl-D or Ctrl-C here ends the conversation.")


def _typed() -> Iterator[str]:
    """Yield what a person types, until the end."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            console.note("")
            return
        if line in _ENDS:
            return
        yield line


def _show(chats: Sequence[Chat], question: str, *, plain: bool) -> None:
    if len(chats) > 1 and not plain and console.interactive() and console.result_console().width >= _LEAST_COLUMNS:
        _show_columns(chats, question)
        return
    for chat in chats:
        if len(chats) > 1:
            console.say(f"--- {chat.model.name}")
        begun = False
        for piece in chat.ask(question):
            shown = piece if begun else piece.lstrip()
            begun = begun or bool(shown)
            console.write(shown)
        console.say("")


def _show_columns(chats: Sequence[Chat], question: str) -> None:
    """Show the answers side by side, as they come."""
    from rich.live import Live
    from rich.table import Column, Table
    from rich.text import Text

    from medsft.core.printable import one_line, printable

    texts = ["" for _ in chats]

    def table() -> Table:
        shown = Table(*(Column(Text(one_line(chat.model.name), style="bold")) for chat in chats), expand=True)
        shown.add_row(*(Text(printable(text.strip())) for text in texts))
        return shown

    with Live(table(), console=console.result_console(), refresh_per_second=8, vertical_overflow="visible") as live:
        for number, chat in enumerate(chats):
            for piece in chat.ask(question):
                texts[number] += piece
                live.update(table())
