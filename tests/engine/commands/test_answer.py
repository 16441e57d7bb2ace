"""The engine's process as the light side talks to it: asked in files, in a conversation, and before and after a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from adapters import write_peft
from safetensors.torch import load_file, save_file

from medsft.core.data.sources.conversation import Message, question_and_answer
from medsft.core.demo import steps
from medsft.core.demo.clinical import Row
from medsft.core.engine.commands.answer import load
from medsft.core.engine.commands.merge import merge
from medsft.core.engine.infer.generation import Generator, Limits
from medsft.core.engine.infer.scoring import score
from medsft.core.evaluation.answer_score import score_of_answer
from medsft.core.evaluation.chat import Chat, Sampling, answers_to, prompt_for
from medsft.core.evaluation.model import ModelSource, find_base_of, find_model
from medsft.core.evaluation.requests import Answer, Generate, Request, Score, Scored, answer, highest_ids
from medsft.core.models.adapter_folder import BASE_KEY
from medsft.core.models.merging import Merge
from medsft.core.run.launch import EngineError
from medsft.errors import ConfigError, DataError

SAMPLING = Sampling(max_tokens=6)
QUESTION = "w1 w2 w3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"), vocab_size=90)


def mixed() -> list[Request]:
    draw = random.Random(3)
    scores = [Score(id=f"s{n}", prefix=tuple(draw.choices(range(80), k=25)), continuations=((1,), (2, 3))) for n in range(8)]
    return [*scores, *(Generate(id=f"g{n}", prompt=(n, n + 1), max_new_tokens=5) for n in range(4))]


def here(model: ModelSource, asked: Sequence[Request], precision: str) -> dict[str, Answer]:
    """The answers by id, computed in this process."""
    decoder = load(model, precision, ids=1 + max(id_ for request in asked for id_ in highest_ids(request)))
    limits = Limits(sequences=8, prompt_tokens=500, cache_tokens=10_000)
    scores = [request for request in asked if isinstance(request, Score)]
    prompts = [request for request in asked if isinstance(request, Generate)]
    found: list[Answer] = [*score(decoder, scores, most_tokens=500), *Generator(decoder, limits).generate(prompts)]
    return {each.id: each for each in found}


def test_processes_that_share_the_work_find_the_same(folder: Path) -> None:
    model = find_model(folder)
    alone, shared = ({each.id: each for each in answer(model, mixed(), precision="fp32", processes=count)} for count in (1, 2))
    assert alone.keys() == shared.keys() == {request.id for request in mixed()}
    for id_, one in alone.items():
        other = shared[id_]
        if isinstance(one, Scored):
            assert isinstance(other, Scored)
            assert other.log_likelihoods == pytest.approx(one.log_likelihoods, abs=1e-5)
        else:
            assert other == one


def test_bf16_is_near(folder: Path) -> None:
    model = find_model(folder)
    asked = [request for request in mixed() if isinstance(request, Score)]
    exact, rounded = (here(model, asked, precision) for precision in ("fp32", "bf16"))
    for id_, one in exact.items():
        other = rounded[id_]
        assert isinstance(one, Scored)
        assert isinstance(other, Scored)
        assert other.log_likelihoods == pytest.approx(one.log_likelihoods, abs=0.1)
        assert other != one


def test_a_conversation_is_that_of_single_requests(folder: Path) -> None:
    """Each turn's prompt holds the turns before it, and pieces of text make up the answer."""
    model = find_model(folder)
    assert "no chat template of its own" in model.notes[0]
    opened = model.open_tokenizer()
    with Chat(model, SAMPLING, precision="fp32", system="w9") as chat:
        asked, said = [], []
        for question in (QUESTION, "w4", QUESTION):
            asked.append((*chat.messages, Message("user", question)))
            broken_off = chat.ask("w7 w8")
            next(broken_off)
            del broken_off  # as Ctrl-C does
            said.append("".join(chat.ask(question)).strip())
        assert [message.role for message in chat.messages][:2] == ["system", "user"]
        chat.forget()
        assert chat.messages == (Message("system", "w9"),)
        with pytest.raises(DataError, match="longer than the context"):
            next(chat.ask("w1 " * 600))
    assert dict(enumerate(said)) == dict(answers_to(model, asked, SAMPLING, precision="fp32"))
    assert prompt_for("q", (Message("user", "w1 " * 505),), model, opened, SAMPLING).max_new_tokens < 6


def test_what_the_process_dies_of_is_told(folder: Path, tmp_path: Path) -> None:
    model = find_model(folder)
    gone = replace(model, weights=tmp_path / "gone")
    with pytest.raises(EngineError, match="no such file or folder") as error:
        list(answer(gone, mixed(), precision="fp32"))
    assert error.value.exit_code == 4


def test_a_run_answers_before_and_after_as_it_was_validated(tmp_path: Path) -> None:
    """The loss of the right answers is the validation loss of the run: at its end, and before its first iteration."""
    from medsft.core.data.sources.read import read_conversations
    from medsft.core.data.sources.row_format import RowFormat
    from medsft.core.engine.commands.export import export_run
    from medsft.core.run.rundir import RunDir

    config, settings = tiny.project(tmp_path)
    plan = tiny.plan_of(config, settings, iters=4, eval_interval=2, save_interval=2)
    events = tiny.train(plan)
    run = Path(plan.run_dir)
    found = find_model(run)
    assert found.iteration == 4
    assert "iteration 4 of 4" in found.notes[-1]
    losses = dict(tiny.series(events, "eval", "iteration", "loss"))
    conversations = list(read_conversations([tmp_path / "val.jsonl"], RowFormat()))
    assert loss(found, conversations) == pytest.approx(losses[4], abs=1e-4)
    assert loss(find_model(run, iteration=2), conversations) == pytest.approx(losses[2], abs=1e-4)
    if 0 in losses:
        assert loss(find_base_of(run), conversations) == pytest.approx(losses[0], abs=1e-4)
    exported = Path(plan.export_dir)
    export_run(RunDir(run), exported)
    finished = find_model(run)
    assert (finished.weights, finished.iteration, finished.notes) == (exported, None, ())
    assert loss(finished, conversations) == pytest.approx(losses[4], abs=1e-4)
    assert replace(find_base_of(exported), begins=run) == find_base_of(run)
    assert find_model(exported).template == "model"
    with pytest.raises(ConfigError, match="does not say which base model"):
        find_base_of(tmp_path / "base")


def loss(model: ModelSource, conversations: list[tuple[Message, ...]]) -> float:
    opened = model.open_tokenizer()
    asked = [score_of_answer(str(n), each, opened) for n, each in enumerate(conversations)]
    found = [each for each in here(model, asked, "fp32").values() if isinstance(each, Scored)]
    return -sum(sum(each.log_likelihoods) for each in found) / sum(sum(each.num_tokens) for each in found)


def test_the_known_answer_is_all_that_has_its_role(folder: Path) -> None:
    opened = find_model(folder).open_tokenizer()
    two = (*question_and_answer("w1", "w2 w3", "w4"), *question_and_answer("w5", "w6"))
    asked = score_of_answer("q", two, opened)
    assert opened.tokenizer.decode(asked.prefix).count("w") >= 4
    assert "w6" in opened.tokenizer.decode(asked.continuations[0])
    assert "w5" not in opened.tokenizer.decode(asked.continuations[0])
    with pytest.raises(ValueError, match="no answer"):
        score_of_answer("q", two[:2], opened)


def test_an_adapter_answers_as_the_model_that_it_is_merged_into(folder: Path, tmp_path: Path) -> None:
    rows = {"embed_tokens": [3, 91], "lm_head": [91]}
    adapter = write_peft(tmp_path / "adapter", folder, rows=rows, seed=1)
    merge(Merge(adapter=adapter, to=tmp_path / "merged", base=None, dtype="fp32"))
    found = find_model(adapter)
    assert (found.weights, found.adapter) == (folder, adapter)
    ours, merged, base, alone = (
        here(model, mixed(), "fp32")
        for model in (found, find_model(tmp_path / "merged"), find_base_of(adapter), find_model(folder))
    )
    assert base == alone
    assert ours == merged
    weights = adapter / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={BASE_KEY: "of another"})
    doubts = [
        sum("not those that the adapter was trained on" in note for note in m.notes) for m in (found, find_model(adapter))
    ]
    assert doubts == [0, 1]
    assert ours != base


def test_the_demonstration_scores_and_answers_in_one_process(folder: Path, tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": "w1 w2", "gold": "w3 w4", "rule": "r"}, {"prompt": "w5", "gold": "w6", "rule": "r"}]
    place = steps.DemoFolder(tmp_path)
    place.held_out.touch()
    found = steps.score(place, folder, rows, "before")
    model = find_model(folder, template="meditron")
    conversations = [question_and_answer(row["prompt"], row["gold"]) for row in rows]
    assert found.loss == pytest.approx(loss(model, conversations), abs=1e-4)
    assert len(found.answers) == 2
