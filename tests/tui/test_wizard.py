from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from textual.widgets import Button, Input, OptionList
from typer.testing import CliRunner

from medsft.cli.app import app as cli
from medsft.core.cluster import rendezvous
from medsft.core.config.command import command_line
from medsft.core.config.file import load_toml
from medsft.core.data.dataset import findings
from medsft.core.devices import Devices
from medsft.core.planning import planner
from medsft.core.planning.planner import preview
from medsft.core.run.draft import Draft, draft_path, save_draft
from medsft.core.run.rundir import RunDir
from medsft.core.settings import load_settings
from medsft.tui.screens.monitor import MonitorScreen
from medsft.tui.widgets.dialogs import TextDialog
from medsft.tui.wizard.fields import Choice, FieldRow
from medsft.tui.wizard.paths import FilePicker

DATA = "clinic/train.jsonl"


def settled(app):
    """The plan is that of the texts, and nothing goes on."""
    state = app.screen.state
    return bool(state.outlook and state.outlook.config == state.config and not state.busy and not state.looking)


async def chosen(app, pilot, until):
    """Wait for the plan of the draft that the `drafted` wizard starts from."""
    await until(pilot, lambda: settled(app) and app.screen.state.outlook.plan)
    await pilot.pause()


@pytest.fixture
def drafted(wizard, project):
    """The wizard where model and data are chosen already, on its first page."""
    texts = {"checkpoint": "tiny", "size": "0.02", "data": DATA, "run_name": "clinic"}
    texts |= {"question_key": "input", "answer_key": "output", "system_key": "system"}
    save_draft(draft_path(), Draft(texts))
    return wizard


def text_of(app, selector):
    return str(app.screen.query_one(selector).render())


async def test_a_run_is_described_by_keys_alone(wizard, until):
    app = wizard()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.state.entries)
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.state.config.checkpoint == "tiny")
        await pilot.press("pagedown", *DATA)
        await until(pilot, lambda: app.screen.state.config.run_name == "clinic" and settled(app))
        state = app.screen.state
        assert all(f"`{key}`" in text_of(app, "#rows") for key in ("input", "output", "system"))
        assert state.problems == ()
        assert "30 iterations" in text_of(app, "#strip")
        await pilot.press("escape", "5")
        await until(pilot, lambda: "640 documents (estimated) x 3 epochs / 64 documents = 30" in text_of(app, "#sum"))
        await pilot.press("down", "4", "5")
        await until(pilot, lambda: settled(app) and app.screen.state.outlook.plan.num_iterations == 45)
        assert "4.5 epochs" in text_of(app, "#meaning")


async def test_the_saved_toml_plans_the_same_run_byte_for_byte(drafted, until, project):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "6", "w")
        await until(pilot, lambda: (project / "run.toml").exists())
        config = load_toml(Path("run.toml"))
        assert config == app.screen.state.config
        shown = app.screen.state.outlook.plan.to_json()
        assert preview(config, load_settings(Path("medsft.toml"))).plan.to_json() == shown
        for number, options in enumerate((["--config", "run.toml"], shlex.split(command_line(config))[2:])):
            file = Path(f"plan-{number}.json")
            assert CliRunner().invoke(cli, ["plan", *options, "--output", str(file)]).exit_code == 0
            assert file.read_text() == shown


async def test_leaving_and_coming_back_finds_the_draft(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3", "down", "down", "2", ".", "5")
        await until(pilot, lambda: app.screen.state.config.epochs == 2.5)
    again = drafted()
    async with again.run_test(size=(80, 24)) as pilot:
        assert again.screen.page == 2
        assert again.screen.state.config.epochs == 2.5
        assert again.screen.query_one("#field-epochs Input", Input).value == "2.5"
        await until(pilot, lambda: settled(again) and again.screen.state.outlook.plan)


async def test_a_problem_stands_beside_its_field_and_in_the_list(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3", "down", "down", *"many")
        await until(pilot, lambda: app.screen.state.problems)
        row = app.screen.query_one("#field-epochs", FieldRow)
        assert "must be a number" in str(row.query_one(".problem").render())
        assert "✖" in text_of(app, "#step-2")
        await pilot.press("escape", "6")
        await until(pilot, lambda: "--epochs" in text_of(app, "#blocking"))
        assert app.screen.query_one("#start", Button).disabled
        assert app.screen.check_action("want", ("start",)) is None


async def test_tokenizing_shows_what_would_be_cut_and_the_remedy_is_one_key(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 40)) as pilot:
        await chosen(app, pilot, until)
        app.screen.edit(seq="20")
        await pilot.press("escape", "2", "k")
        await until(pilot, lambda: app.screen.state.outlook and app.screen.state.outlook.report, seconds=60)
        report = app.screen.state.outlook.report
        assert report.exceeding > 0
        await until(pilot, lambda: "cutting them would take tokens from" in text_of(app, "#report"))
        assert any("--truncate" in problem.hint for problem in app.screen.state.problems)
        await pilot.press("r")
        await until(pilot, lambda: settled(app) and not app.screen.state.problems)
        assert app.screen.state.config.seq == report.fitting_seq
        assert app.screen.state.outlook.exact


async def test_a_check_shows_what_is_found_in_the_rows(drafted, until, project):
    with (project / DATA).open("a") as file:
        file.write('{"input": "call 617-555-0143", "output": "w1"}\n' * 2)
    app = drafted()
    async with app.run_test(size=(80, 40)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "2", "c")
        await until(pilot, lambda: isinstance(app.screen, TextDialog) and app.screen.query("Static"), seconds=60)
        shown = str(app.screen.query_one("Static").render())
        assert "642 rows, " in shown
        assert "2 rows hold a phone number" in shown
        assert f"{DATA}:641" in shown
        assert "0143" not in shown


async def test_samples_are_shown_as_the_model_reads_them(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "2")
        await until(pilot, lambda: app.screen.state.outlook.samples)
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, TextDialog))
        shown = str(app.screen.query_one("Static").render())
        assert "<|im_start|>question\nw0" in shown
        assert "question, " in shown
        assert "read, not trained on" in shown
        assert "tokens, trained on" in shown


async def test_starting_tokenizes_starts_and_watches(drafted, until, monkeypatch):
    def start(plan):
        run = RunDir(Path(plan.run_dir))
        run.create(plan.to_json())
        return run

    monkeypatch.setattr(rendezvous, "start", start)
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "6", "s")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen) and app.screen.snapshot, seconds=60)
        assert app.screen.state == "planned"
        assert app.screen.plan.device_memory == 16 << 30
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, MonitorScreen))


async def test_a_number_that_tokenizing_changed_is_confirmed_again(drafted, until, monkeypatch, project):
    monkeypatch.setattr(rendezvous, "start", lambda plan: pytest.fail("must not start"))
    monkeypatch.setattr(findings, "SURVEYED_ROWS", 100)  # the outlook does not get as far as the rows that are skipped
    with (project / "clinic" / "train.jsonl").open("a") as rows:
        rows.write('{"input": "w1"}\n' * 640)
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        app.screen.edit(bad_rows="skip", question_key="input", answer_key="output")
        await until(pilot, lambda: settled(app) and app.screen.state.outlook.plan.num_iterations == 60)
        await pilot.press("escape", "6")
        await until(pilot, lambda: app.screen.check_action("want", ("start",)))
        await pilot.press("s")
        await until(pilot, lambda: app.screen.page == 4, seconds=60)
        await until(pilot, lambda: settled(app) and app.screen.state.outlook.plan.num_iterations == 30)


async def test_what_stops_a_start_is_told(drafted, until, monkeypatch, project):
    monkeypatch.setattr(findings, "SURVEYED_ROWS", 1)
    (project / "clinic" / "train.jsonl").write_text(
        '{"system": "w3", "input": "w1", "output": "w2"}\n{"system": "w3", "input": "w1", "output": ""}\n'
    )
    app = drafted()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "6")
        await until(pilot, lambda: app.screen.check_action("want", ("start",)))
        await pilot.press("s")
        await until(pilot, lambda: any("train.jsonl:2" in note.message for note in app._notifications), seconds=60)
        assert not isinstance(app.screen, MonitorScreen)


async def test_a_search_finds_models_and_adds_the_chosen_one(drafted, until, project):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.state.entries)
        await pilot.press("tab", *"found", "enter")
        await until(pilot, lambda: len(app.screen.state.entries) == 3)
        entries = app.screen.query_one("#entries", OptionList)
        assert entries.has_focus
        assert entries.highlighted == 2
        await pilot.press("enter")
        await until(pilot, lambda: settled(app) and app.screen.state.config.checkpoint == "other")
        assert "other" in (project / "medsft.toml").read_text()
        assert not any(problem.where == "--checkpoint" for problem in app.screen.state.problems)


async def test_only_levels_that_can_work_are_offered(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "4")
        choice = app.screen.query_one("#field-tp Choice", Choice)
        assert choice.options == ("auto", "1", "2", "4")
        assert "fits" in text_of(app, "#memory")
        app.screen.edit(nodes="2", addr="node0")
        await until(pilot, lambda: "node 1: medsft sft" in text_of(app, "#commands"))
        assert "--rank 1" in text_of(app, "#commands")


async def test_files_are_marked_in_a_tree(drafted, until, project):
    (project / "clinic" / "more.jsonl").write_text("{}\n")
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "2", "f")
        await until(
            pilot, lambda: isinstance(app.screen, FilePicker) and len(app.screen.query_one("DataTree").root.children) == 2
        )
        await pilot.press("down", "enter")
        await until(pilot, lambda: "2 marked" in text_of(app, "#marked"))
        await pilot.press("d")
        await until(pilot, lambda: not isinstance(app.screen, FilePicker))
        assert set(app.screen.state.config.data) == {Path(DATA), Path("clinic/more.jsonl")}


async def test_settings_that_cannot_be_read_are_told(drafted, until, project):
    (project / "medsft.toml").write_text("[checkpoints\n")
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: settled(app))
        assert any("not valid TOML" in problem.message for problem in app.screen.state.problems)


PAGES = ("base", "dataset", "training", "parallel", "iterations", "review")


@pytest.mark.parametrize("name", PAGES)
async def test_each_page_looks_as_before(name, drafted, until, same_as_before):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        page = PAGES.index(name)
        await pilot.press("escape", str(page + 1))
        await until(pilot, lambda: settled(app) and app.screen.page == page)
        await pilot.pause()
        await same_as_before(pilot, f"wizard-{name}-80x24")


@pytest.mark.parametrize(("page", "size"), [(1, (120, 40)), (3, (120, 40)), (2, (60, 20))])
async def test_problems_look_as_before(page, size, drafted, until, same_as_before):
    app = drafted()
    async with app.run_test(size=size) as pilot:
        await chosen(app, pilot, until)
        app.screen.edit(epochs="many", seq="4", tp="3")
        await pilot.press("escape", str(page + 1))
        await until(pilot, lambda: settled(app) and app.screen.page == page)
        await pilot.pause()
        await same_as_before(pilot, f"wizard-problems-{page + 1}-{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_problems_can_be_read_in_the_light_theme(size, drafted, until, same_as_before):
    app = drafted()
    async with app.run_test(size=size) as pilot:
        await chosen(app, pilot, until)
        app.screen.edit(epochs="many", seq="4", tp="3")
        await pilot.press("escape", "t", "6")
        await until(pilot, lambda: settled(app) and app.screen.page == 5)
        await same_as_before(pilot, f"wizard-problems-light-{size[0]}x{size[1]}")


async def test_up_and_down_move_between_fields_and_scroll_the_review(drafted, until):
    app = drafted()
    async with app.run_test(size=(60, 20)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3", "down", "down", "down", "down", "up")
        assert app.focused is app.screen.query_one("#field-global_batch Input")
        await pilot.press("up", "up", "up")
        assert app.focused is app.screen.query_one("#field-adapter Choice")
        await pilot.press("escape", "6", "down")
        page = app.screen.query_one("#page-5")
        await until(pilot, lambda: page.scroll_y > 0)
        assert app.focused is None


async def test_after_a_dialog_keys_do_not_reach_a_hidden_page(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3", "question_mark")
        await until(pilot, lambda: isinstance(app.screen, TextDialog))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, TextDialog))
        await pilot.pause()
        assert app.focused is None


async def test_what_was_chosen_about_long_documents_is_said(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await chosen(app, pilot, until)
        app.screen.edit(seq="20", truncate="keep")
        await pilot.press("escape", "2", "k")
        await until(pilot, lambda: "they are cut, as chosen" in text_of(app, "#report"), seconds=60)
        await until(pilot, lambda: any("as chosen" in note.message for note in app._notifications))


async def test_a_key_that_the_rows_do_not_have_is_told(drafted, until):
    app = drafted()
    async with app.run_test(size=(80, 24)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "2")
        app.screen.edit(answer_key="reply")
        await until(pilot, lambda: "Not in all of these rows: `reply`" in text_of(app, "#keys"))


async def test_kinds_of_training_are_shown_beside_one_another_and_a_smaller_one_is_offered(drafted, until, monkeypatch):
    monkeypatch.setattr(planner, "find_devices", lambda: Devices("cuda", 1, 6 << 30, "a device", bf16=True))
    app = drafted()
    async with app.run_test(size=(80, 40)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3")
        await until(pilot, lambda: "does not fit" in text_of(app, "#kinds"))
        full, eight_bit, lora, qlora = text_of(app, "#kinds").splitlines()
        assert full.startswith("● full")
        assert eight_bit.startswith("○ 8-bit AdamW")
        assert eight_bit.endswith("7.5 GiB, does not fit")
        assert lora.startswith("○ LoRA")
        assert (full.endswith("10.5 GiB, does not fit"), lora.endswith("5.2 GiB, fits")) == (True, True)
        assert "2.6 GiB" in qlora
        assert not app.screen.query_one("#field-lora_rank").display
        assert app.screen.query_one("#field-lr Input", Input).placeholder == "2e-05 (default)"
        button = app.screen.query_one("#train-smaller", Button)
        assert str(button.label) == "Train with LoRA, which fits"
        button.press()
        await until(pilot, lambda: app.screen.state.config.adapter == "lora" and settled(app))
        await until(pilot, lambda: "● LoRA" in text_of(app, "#kinds"))
        assert app.screen.state.config.base_precision is None
        assert app.screen.query_one("#field-lora_rank").display
        assert not app.screen.query_one("#smaller").display
        assert app.screen.query_one("#field-lr Input", Input).placeholder == "0.0002 (default)"
        assert app.screen.state.outlook.plan.config.lr == 2e-4
        assert "--adapter lora" in command_line(app.screen.state.config)


@pytest.mark.parametrize(("gib", "kind", "option"), [(8, "8-bit", "optimizer adamw8bit"), (3, "QLoRA", "base_precision nf4")])
async def test_the_kind_that_fits_is_offered(gib, kind, option, drafted, until, monkeypatch):
    monkeypatch.setattr(planner, "find_devices", lambda: Devices("cuda", 1, gib << 30, "a device", bf16=True))
    app = drafted()
    async with app.run_test(size=(80, 40)) as pilot:
        await chosen(app, pilot, until)
        await pilot.press("escape", "3")
        await until(pilot, lambda: kind in str(app.screen.query_one("#train-smaller", Button).label))
        app.screen.query_one("#train-smaller", Button).press()
        name, value = option.split()
        await until(pilot, lambda: getattr(app.screen.state.config, name) == value and settled(app))
        await until(pilot, lambda: f"● {kind}" in text_of(app, "#kinds"))
        assert f"--{option}" in command_line(app.screen.state.config)
        assert app.screen.query_one(f"#field-{name} Choice", Choice).value == value
