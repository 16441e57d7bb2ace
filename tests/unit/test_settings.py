"""medsft.toml: what is read, what is refused, and that writing keeps what people put there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from medsft.core import settings
from medsft.core.models.other_folders import how_to_fetch
from medsft.core.models.scanning import scan
from medsft.errors import ConfigError

TOML = """\
# the models of the ward
[checkpoints.meditron]  # from the cluster
7 = "ckpt/seven"  # the small one
0.135 = "smol.gguf"
"70" = { path = "/far/seventy", family = "llama-2", tokenizer = "tok" }

[datasets.pubmedqa]
n_docs = 200000
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "medsft.toml").write_text(TOML)
    return folder


def test_paths_are_relative_to_the_file_and_sizes_are_numbers(project: Path) -> None:
    found = settings.load_settings(cwd=project).checkpoints
    assert {key: entry.path for key, entry in found.items()} == {
        ("meditron", 7.0): project / "ckpt/seven",
        ("meditron", 0.135): project / "smol.gguf",
        ("meditron", 70.0): Path("/far/seventy"),
    }
    assert found["meditron", 70.0].family == "llama-2"
    assert found["meditron", 70.0].tokenizer == project / "tok"


def test_project_wins_over_user_and_explicit_file_is_alone(project: Path, tmp_path: Path) -> None:
    settings.add_checkpoint(settings.user_file(), "meditron", 7, Path("/user/seven"))
    settings.add_checkpoint(settings.user_file(), "other", 1, Path("/user/one"))
    both = settings.load_settings(cwd=project)
    assert both.checkpoints["meditron", 7.0].path == project / "ckpt/seven"
    assert both.checkpoints["other", 1.0].path == Path("/user/one")
    explicit = tmp_path / "else.toml"
    explicit.write_text("[datasets.a]\nn_docs = 3\n")
    alone = settings.load_settings(explicit, cwd=project)
    assert not alone.checkpoints
    assert alone.expected_documents("a") == 3
    assert alone.expected_documents("pubmedqa") is None


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("medtron", 7.0, "unknown checkpoint `medtron`, size 7: did you mean `meditron`?"),
        ("meditron", 13.0, "Sizes in medsft.toml: 0.135, 7, 70."),
        ("zebra", 0.5, "medsft checkpoints add zebra 0.5 PATH"),
        ("baseline", 7.0, "Give --checkpoint meditron --size 0.135 or --checkpoint meditron --size 7"),
        ("meditron", 7.0, "ckpt/seven does not exist"),
    ],
)
def test_a_checkpoint_that_is_not_there_says_what_to_do(project: Path, name: str, size: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load_settings(cwd=project).find_checkpoint(name, size)
    assert message in str(caught.value)


def test_everything_wrong_is_reported_at_once(project: Path) -> None:
    (project / "medsft.toml").write_text(
        '[checkpoint.x]\n7 = "a"\n[checkpoints.m]\nlarge = "b"\n8 = 3\n9 = { family = "x" }\n10 = { path = "p", kind = "k" }\n'
        "[datasets.d]\nn_docs = 0\n"
    )
    with pytest.raises(ConfigError) as caught:
        settings.load_settings(cwd=project)
    places = [problem.where.rpartition("medsft.toml: ")[2] for problem in caught.value.problems]
    assert places == [
        "[checkpoint]",
        "[checkpoints.m] large",
        "[checkpoints.m] 8",
        "[checkpoints.m] 9",
        "[checkpoints.m] 10",
        "[datasets.d]",
    ]


def test_broken_toml_names_the_file(project: Path) -> None:
    (project / "medsft.toml").write_text("[checkpoints")
    with pytest.raises(ConfigError, match=r"medsft\.toml: not valid TOML"):
        settings.load_settings(cwd=project)
    with pytest.raises(ConfigError, match="not valid TOML"):
        settings.add_dataset(project / "medsft.toml", "a", 1)


def test_writing_keeps_comments_and_the_rest(project: Path) -> None:
    file = project / "medsft.toml"
    settings.add_checkpoint(file, "meditron", 7, project / "new" / "seven")
    settings.add_checkpoint(file, "meditron", 0.135, Path("/else/smol.gguf"), tokenizer=project / "tok.json")
    settings.add_dataset(file, "pubmedqa", 5)
    text = file.read_text()
    assert "# the models of the ward" in text
    assert '7 = "new/seven"  # the small one' in text
    ours = settings.load_settings(cwd=project)
    assert ours.checkpoints["meditron", 0.135].tokenizer == project / "tok.json"
    assert len(ours.checkpoints) == 3
    assert ours.expected_documents("pubmedqa") == 5


def test_remove_takes_one_entry_and_refuses_unknown_ones(project: Path) -> None:
    file = project / "medsft.toml"
    for size in (0.135, 7.0, 70.0):
        settings.remove_checkpoint(file, "meditron", size)
        assert ("meditron", size) not in settings.load_settings(cwd=project).checkpoints
    settings.remove_dataset(file, "pubmedqa")
    assert not settings.load_settings(cwd=project).datasets
    for action in (lambda: settings.remove_checkpoint(file, "meditron", 7), lambda: settings.remove_dataset(file, "pubmedqa")):
        with pytest.raises(ConfigError, match="has no"):
            action()


def test_names_that_cannot_be_folders_are_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be part of a folder name"):
        settings.add_checkpoint(project / "medsft.toml", "a/b", 7, project)


RUN = "z/llama-8b-hf-llama-triage-lora"


def test_scan_finds_checkpoints_and_proposes_names(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    for name in ("Llama2-7b-hf", "deep/nested/some model", ".hidden/llama-1b", "x/model-0.1m", "y/model-0.1m", RUN):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        tiny.write_weights(folder)
    (tmp_path / "notes").mkdir()
    found = scan(tmp_path)
    assert [(f.name, f.base.path.relative_to(tmp_path).as_posix()) for f in found] == [
        ("llama2", "Llama2-7b-hf"),
        ("some-model", "deep/nested/some model"),
        ("model", "x/model-0.1m"),
        ("model-2", "y/model-0.1m"),
        ("llama-triage-lora", RUN),
    ]
    counted = pytest.approx(95e3 / 1e9, rel=0.1)
    assert [f.size for f in found] == [counted, counted, 0.0001, 0.0001, counted]  # a name that cannot be true is not believed
    assert scan(tmp_path / "x", taken=[("model", 0.0001)])[0].name == "model-2"


def test_a_model_with_gguf_files_beside_its_weights_is_found_once(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "num_attention_heads": 4}))
    tiny.write_weights(tmp_path)
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    assert [(f.base.kind, f.base.path) for f in scan(tmp_path)] == [("hf", tmp_path)]


def test_a_name_is_corrected_and_a_path_as_on_the_hub_is_explained(project: Path) -> None:
    (project / "medsft.toml").write_text('[checkpoints.Llama3]\n8 = "meta-llama/Llama-3.1-8B"\n')
    ours = settings.load_settings(cwd=project)
    with pytest.raises(ConfigError, match="did you mean `Llama3`"):
        ours.find_checkpoint("llama3", 8)
    with pytest.raises(ConfigError, match=r"medsft downloads nothing.*hf download meta-llama/Llama-3\.1-8B"):
        ours.find_checkpoint("Llama3", 8)


def test_a_folder_of_models_is_not_taken_for_an_owner_on_the_hub() -> None:
    hint = how_to_fetch("models/Llama-3.1-8B")
    assert "hf download OWNER/Llama-3.1-8B --local-dir models/Llama-3.1-8B`" in hint
    assert "hf download meta-llama/Llama-3.1-8B --local-dir models/Llama-3.1-8B`" in how_to_fetch("meta-llama/Llama-3.1-8B")


def test_entries_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    add = """if True:
        import sys
        from pathlib import Path
        from medsft.core import settings
        sys.stdin.read()
        for number in range(10):
            settings.add_dataset(Path(sys.argv[1]), f"{sys.argv[2]}-{number}", 1)
    """
    file = tmp_path / "new" / "medsft.toml"
    commands = [
        subprocess.Popen([sys.executable, "-c", add, str(file), str(number)], stdin=subprocess.PIPE) for number in range(3)
    ]
    for command in commands:
        assert command.stdin is not None
        command.stdin.close()
    assert [command.wait() for command in commands] == [0, 0, 0]
    assert len(settings.load_settings(file).datasets) == 30
    assert [path.name for path in file.parent.iterdir()] == ["medsft.toml"]
