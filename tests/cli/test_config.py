"""The configuration file: what it says is what the command line would have said; jsonschema judges the schema."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from oci2boot.cli.config import commands_of, read_config, schema_of, settings_of
from oci2boot.cli.main import app
from oci2boot.errors import FormatError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/usr/file").write_text("x" * 100)
    return tmp_path / "root"


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_says_what_the_words_would(root: Path, tmp_path: Path) -> None:
    config = written(
        tmp_path / "oci2boot.toml",
        f'[digest]\nsource = "dir:{root}"\nhash = "sha512"\nkarg = true\nerofs-version = 0\n',
    )
    wanted = run("digest", f"dir:{root}", "--hash", "sha512", "--karg", "--erofs-version", "0")
    assert run("--config", config, "digest") == wanted
    assert run("--config", config, "digest", "--hash", "sha256").strip() != wanted.strip()


def test_every_option_of_every_command_is_in_the_schema() -> None:
    """K1.3"""
    schema = schema_of(app)
    jsonschema.Draft202012Validator.check_schema(schema)
    for names, command in commands_of(app):
        at = schema
        for name in names:
            at = at["properties"][name]
        assert set(at["properties"]) == set(settings_of(command))
    shown = run("convert", "--help")
    assert all(f"--{name}" in shown or name == "source" for name in ("flow", "karg", "secureboot-key", "boot"))


GOOD = """
[convert]
source = "oci:layout:v"
karg = ["quiet", "console=ttyS0"]
boot = true
[install]
target = "disk.raw"
size = "10G"
[uki.build]
rootfs = "root"
"""


def test_the_schema_takes_what_is_read(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", GOOD)
    jsonschema.validate(tomllib.loads(GOOD), json.loads(run("config")))
    found = read_config(config, app)
    assert found["convert"]["karg"] == ["quiet", "console=ttyS0"]
    assert found["install"]["target"] == str(tmp_path / "disk.raw")
    assert set(found["uki"]) == {"build"}


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("[convertt]\n", "convertt is no command", "did you mean convert?"),
        ("[convert]\nflaw = 'auto'\n", "flaw is no option of convert", "did you mean flow?"),
        ("[convert]\nflow = 'automatic'\n", "flow of convert is 'automatic'", "auto"),
        ("[convert]\nkarg = 'quiet'\n", "karg of convert is not a list", "karg ="),
        ("[convert]\nboot = 'yes'\n", "should be of type bool", None),
        ("[convert]\nkarg = [1]\n", "should be of type str", None),
        ("convert = 5\n", "convert is no table", "[convert]"),
        ("[uki]\nbuild = 5\n", "uki.build is no table", "[convert]"),
        ("[uki.biuld]\n", "uki biuld is no command", "did you mean uki build?"),
        ("[convert\n", "is not TOML", None),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str, hint: str | None) -> None:
    config, schema = written(tmp_path / "c.toml", text), schema_of(app)
    with pytest.raises(FormatError) as caught:
        read_config(config, app)
    assert words in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")
    with pytest.raises((jsonschema.ValidationError, tomllib.TOMLDecodeError)):
        jsonschema.validate(tomllib.loads(text), schema)


def test_one_run_converts_and_installs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K1.3: both steps of one file; here the second refuses, since the first made no boot files."""
    text = f'[convert]\nsource = "dir:{root}"\nrepo = "repo"\nboot = false\nname = "x"\n'
    text += '[install]\nrepo = "repo"\ntarget = "d.raw"\n'
    written(tmp_path / "oci2boot.toml", text)
    monkeypatch.chdir(tmp_path)
    assert "would run: oci2boot convert" in CliRunner().invoke(app, ["build", "--dry-run"]).output
    done = CliRunner().invoke(app, ["build"])
    assert done.exception is not None
    assert "converted without boot files" in str(done.exception)
    assert "x" in run("images", "--repo", tmp_path / "repo")


def test_without_a_file_build_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cannot read oci2boot.toml" in str(CliRunner().invoke(app, ["build"]).exception)
