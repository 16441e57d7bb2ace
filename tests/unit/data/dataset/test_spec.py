"""One value is what is asked for, what workers get and what the manifest keeps."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.row_format import RowFormat

OLD_SET = Path(__file__).parents[3] / "old" / "0.1.0" / "tokenized" / "words"


def test_json_and_pickle_give_the_same_spec_again(tmp_path: Path, hf_folder: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"q": "the dose?", "gold": "5 mg"}\n')
    asked = TokenizeSpec(
        data=(rows,),
        tokenizer=hf_folder,
        template="chatml",
        rows=RowFormat(keys=Keys(question="q")),
        bad_rows="skip",
        special_in_text="control",
        extra_ids=("<|im_start|>", "<|im_end|>"),
        prefer_model_file=True,
    )
    kept = tokenize(asked, tmp_path / "x").manifest.recipe
    assert kept is not None
    assert replace(kept, inputs=(), tokenizer_fingerprint="", template_sha256="") == asked
    again = TokenizeSpec.from_json(json.loads(json.dumps(kept.to_json())))
    assert len({kept, again, pickle.loads(pickle.dumps(kept))}) == 1


def test_the_keys_of_the_first_version_are_read_and_written() -> None:
    recipe = json.loads((OLD_SET / "manifest.json").read_text())["recipe"]
    spec = TokenizeSpec.from_json(recipe)
    assert spec.data == tuple(Path(file["path"]) for file in recipe["inputs"])
    written = spec.to_json()
    assert {name: written[name] for name in recipe} == recipe
