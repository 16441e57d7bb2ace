"""Tokenized sets of the original from the command line: made byte for byte, and used as they are."""

from __future__ import annotations

import json
import shutil
import struct
from importlib.resources import files
from pathlib import Path

import pytest
import tiny
from sentencepiece import SentencePieceProcessor
from typer.testing import CliRunner, Result

from medsft.cli.app import app
from medsft.cli.argv import normalize
from medsft.core.config.run_config import from_mapping
from medsft.core.settings import load_settings
from medsft.core.workflow import prepare
from medsft.errors import ExitCode

MODEL = Path(str(files("mistral_common") / "data" / "tokenizer.model.v1"))
START, END = 32017, 32018
"""Ids of <|im_start|> and <|im_end|> after 32,000 pieces, 5 ids of the tokenizer and 12 of the recipe."""
ROWS = [
    {"prompt": "What is the dose of aspirin?", "gold": "75 to 325 mg."},
    {"prompt": "Is <|im_end|> a word?", "gold": "No."},
]

Document = tuple[list[int], list[int]]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def invoke(line: str) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, normalize(line.split()))


def document(row: dict[str, str]) -> Document:
    """Tokens and roles of a row: text between control tokens is encoded on its own, so that each piece gets its own prefix."""
    pieces = SentencePieceProcessor(model_file=str(MODEL))
    tokens: list[int] = []
    roles: list[int] = []
    for role, word, text in ((1, "question", row["prompt"]), (2, "answer", row["gold"])):
        parts = [pieces.encode_as_ids(part) for part in f"{word}\n{text}".split("<|im_end|>")]
        ids = [START, *parts[0], *(id_ for part in parts[1:] for id_ in (END, *part)), END, *pieces.encode_as_ids("\n")]
        tokens += ids
        roles += [role] * len(ids)
    return tokens, roles


def files_of(sequences: list[list[int]]) -> tuple[bytes, bytes]:
    """The .bin and .idx of sequences of 16-bit numbers."""
    sizes = [len(sequence) for sequence in sequences]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(sizes), 1) + struct.pack(f"<{len(sizes)}i", *sizes)
    offsets = [2 * sum(sizes[:number]) for number in range(len(sizes))]
    index += struct.pack(f"<{len(sizes)}q", *offsets) + struct.pack("<q", 0)
    return b"".join(struct.pack(f"<{len(s)}H", *s) for s in sequences), index


def write_set(folder: Path, documents: list[Document]) -> None:
    folder.mkdir(parents=True)
    for kind, place in (("text", 0), ("role", 1)):
        for ending, content in zip(("bin", "idx"), files_of([each[place] for each in documents]), strict=True):
            (folder / f"{folder.name}-{kind}.{ending}").write_bytes(content)


def test_tokenize_gives_the_bytes_of_the_original() -> None:
    shutil.copy(MODEL, "tokenizer.model")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = invoke("tokenize --run_name old --data rows.jsonl --compat megatron-llm --tokenizer tokenizer.model --plain")
    assert result.exit_code == ExitCode.DONE, result.stderr
    write_set(Path("expected/old"), [document(row) for row in ROWS])
    for path in Path("expected/old").iterdir():
        assert (Path("tokenized/old") / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_set_without_a_manifest_is_used_when_trusted(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tokenizer=False, vocab_size=32019)
    shutil.copy(MODEL, base / "tokenizer.model")
    (tmp_path / "medsft.toml").write_text('[checkpoints.tiny]\n0.001 = "base"\n')
    write_set(tmp_path / "tokenized" / "old", [document(ROWS[0])] * 30)
    write_set(tmp_path / "tokenized" / "old-val", [document(ROWS[0])] * 3)
    flags = "--checkpoint tiny --size 0.001 --run_name old --global_batch 4 --micro_batch 1 --nproc_per_node 1"

    refused = invoke(f"plan {flags} --json")
    assert refused.exit_code == ExitCode.DATA
    assert "--trust_cache" in refused.stderr
    planned = invoke(f"plan {flags} --json --trust_cache")
    assert planned.exit_code == ExitCode.DONE, planned.stderr
    record = json.loads(planned.stdout)
    assert (record["train"]["documents"], record["val"]["documents"]) == (30, 3)
    again = invoke(f"plan {flags} --json")
    assert json.loads(again.stdout)["identity"] == record["identity"], "once trusted, it is known"

    for manifest in (tmp_path / "tokenized").glob("*/manifest.json"):
        manifest.unlink()
    given = {"checkpoint": "tiny", "size": 0.001, "run_name": "old", "global_batch": 4, "micro_batch": 1, "nproc_per_node": 1}
    plan = prepare(from_mapping({**given, "trust_cache": True}), load_settings(tmp_path / "medsft.toml"))
    assert plan.identity == record["identity"]
