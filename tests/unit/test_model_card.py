"""What the card of a finished model says of its training set and of what trained it, from the plan and the set's manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import tiny

from medsft.core.engine.commands.model_card import model_card
from medsft.core.planning.planner import make_plan
from medsft.core.run.view import RunView
from medsft.core.workflow import tokenize_sets

READ = "| Rows read as | qa: question `prompt`, answer `gold`; messages: messages `chat\\|s` |"


def test_the_card_says_how_rows_were_read_and_what_trained(tmp_path: Path) -> None:
    config, settings = tiny.plannable(tmp_path)
    talk = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}] * 2
    chats = tmp_path / "chats.jsonl"
    chats.write_text(3 * (json.dumps({"chat|s": talk}) + "\n"))
    tokenize_sets(config, settings)
    plain = make_plan(config, settings)
    config = replace(config, run_name="mixed", data=(*config.data, chats), messages_key="chat|s", val=())
    config = replace(config, turns="last", optimizer="adamw8bit")
    tokenize_sets(config, settings)
    plan = make_plan(config, settings)

    card = model_card(plan, RunView(), 0)
    assert READ in card
    assert "| Answers trained on | the last of each conversation |" in card
    assert "| Optimizer | 8-bit AdamW (`--optimizer adamw8bit`) |" in card
    assert "Modelfile" not in card
    assert "for Ollama, `Modelfile` has two commands." in model_card(plan, RunView(), 0, has_modelfile=True)

    usual = model_card(plain, RunView(), 0)
    assert "| Optimizer |" not in usual
    assert "| Answers trained on |" not in usual

    manifest = Path(plan.train.folder) / "manifest.json"
    other = json.loads(manifest.read_text()) | {"text_sha256": "0" * 64}
    manifest.write_text(json.dumps(other))
    assert "Rows read as" not in model_card(plan, RunView(), 0), "the set is another one now"
    manifest.write_text("{")
    assert "Rows read as" not in model_card(plan, RunView(), 0)
