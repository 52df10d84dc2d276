# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of scripts: the command line over the file, and one conversion for both."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from clipn_hf.script_arguments import parse_with_config, read_config


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


@dataclass
class ModelArguments:
    model: str = field(metadata={"help": "Model."})
    kind: Literal["learnable", "handcrafted"] | None = None
    level: Level = Level.LOW
    templates: list[str] | None = None


@dataclass
class RunArguments:
    columns: list[str] = field(default_factory=lambda: ["caption"])
    scale: list[float] = field(default_factory=lambda: [0.9, 1.0])
    rate: float = 3e-4
    steps: int = field(default=10, metadata={"help": "Steps."})
    limit: int | None = 5
    shuffle: bool = True
    pin: bool | None = None
    save: str = "steps"
    report: None | str | list[str] = None  # noqa: RUF036 - as TrainingArguments write it, for HfArgumentParser
    options: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")


def parse(tmp_path: Path, text: str, *argv: str, **arguments: Any) -> tuple[ModelArguments, RunArguments]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return parse_with_config([ModelArguments, RunArguments], ["--config", str(path), *argv], **arguments)


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    model, run = parse(
        tmp_path,
        "model: a\ncolumns: [x, y]\nrate: 1e-5\nsteps: 3\nshuffle: false\nkind: learnable",
        *("--model", "b", "--columns", "z", "--shuffle", "true", "--scale", "0.5", "1"),
    )
    assert model == ModelArguments("b", kind="learnable")
    assert run == RunArguments(columns=["z"], scale=[0.5, 1.0], rate=1e-5, steps=3)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (("--limit", "null"), "limit", None),
        (("--limit=null",), "limit", None),
        (("--pin", "null", "--steps", "3"), "pin", None),
        (("--report", "null"), "report", None),
        (("--templates", "null"), "templates", None),
        (("--templates", "null", "a"), "templates", ["null", "a"]),
        (("--limit", "null", "--limit", "4"), "limit", 4),
        (("--limit", "4", "--limit", "null"), "limit", None),
        (("--save", "null"), "save", "null"),
    ],
)
def test_null_on_the_command_line(argv: tuple[str, ...], name: str, value: object, tmp_path: Path) -> None:
    model, run = parse(tmp_path, "model: a\ntemplates: [c]\nlimit: 7\npin: true\nreport: b", *argv)
    assert getattr(model if name == "templates" else run, name) == value


def test_null_before_positionals() -> None:
    run, output = parse_with_config([RunArguments], ["--limit", "null", "out"], positionals={"output": "Folder."})
    assert (run.limit, output) == (None, "out")


def test_without_a_file() -> None:
    assert parse_with_config([ModelArguments], ["--model", "a"]) == (ModelArguments("a"),)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("columns: []", "columns", []),
        ("columns: caption", "columns", ["caption"]),
        ("scale: [1, 2e-1]", "scale", [1.0, 0.2]),
        ("rate: 1", "rate", 1.0),
        ("rate: 1e-5", "rate", 1e-5),
        ("rate: '.5'", "rate", 0.5),
        ("steps: '7'", "steps", 7),
        ("limit: null", "limit", None),
        ("limit:", "limit", None),
        ("shuffle: false", "shuffle", False),
        ("shuffle: 'no'", "shuffle", False),
        ("pin: true", "pin", True),
        ("pin: null", "pin", None),
        # In YAML 1.1, this would be a truth value.
        ("save: no", "save", "no"),
        ("save: false", "save", "false"),
        ("report: [a, b]", "report", ["a", "b"]),
        ("report: none", "report", "none"),
        ("options: {lower: 1e-5, on: true}", "options", {"lower": 1e-5, "on": True}),
        ("options: null", "options", None),
    ],
)
def test_values(line: str, name: str, value: object, tmp_path: Path) -> None:
    _, run = parse(tmp_path, f"model: a\n{line}")
    assert getattr(run, name) == value
    assert type(getattr(run, name)) is type(value)


def test_choices_and_texts_that_look_like_options(tmp_path: Path) -> None:
    model, _ = parse(tmp_path, "model: --model\nlevel: high\ntemplates: ['- {}', '--{}', 'é {}']")
    assert model == ModelArguments("--model", level=Level.HIGH, templates=["- {}", "--{}", "é {}"])


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("model: a\nratio: 1", (), "no arguments: `ratio` (did you mean `rate`?)."),
        ("model: a\nxyz: 1\nrates: 1", (), "no arguments: `xyz`, `rates` (did you mean `rate`?)."),
        ("model: a\nno_shuffle: true", (), "no arguments: `no_shuffle` (did you mean `shuffle`?)."),
        ("model: a\nconfig: b", (), "no arguments: `config`"),
        ("rate: fast", (), "`rate` must be a number, got 'fast'."),
        ("rate: true", (), "`rate` must be a number, got 'true'."),
        ("steps: 1.5", (), "`steps` must be a whole number, got '1.5'."),
        ("shuffle: maybe", (), "`shuffle` must be true or false, got 'maybe'."),
        ("kind: other", (), "`kind` must be one of learnable, handcrafted, got 'other'."),
        ("level: middle", (), "`level` must be one of low, high, got 'middle'."),
        ("rate: null", (), "`rate` has no value; give one, or leave the line out for the default."),
        ("model:", (), "`model` has no value"),
        ("rate: [1, 2]", (), "`rate` takes one value, got the list [1, 2]."),
        ("rate: {a: 1}", (), "`rate` takes no mapping, got {'a': 1}."),
        ("columns: {a: 1}", (), "`columns` takes no mapping"),
        ("columns: [a, null]", (), "`columns` takes a list of single values, got None in it."),
        ("scale: [1, x]", (), "`scale` must be a number, got 'x'."),
        ("- a\n- b", (), "must hold lines of the form `argument: value`, got list."),
        ("", (), "must hold lines of the form `argument: value`, got nothing."),
        ("1: a", (), "must be names of arguments, got 1."),
        ("a: [", (), "while parsing a flow node"),
    ],
)
def test_errors_name_file_and_key(
    text: str, argv: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, text, *argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"error: --config {tmp_path / 'recipe.yaml'}: " in error
    assert message in error


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("model: a", ("--ratee", "1"), "Unknown arguments: --ratee 1 (did you mean `--rate`?)."),
        ("model: a", ("--mod", "1"), "Unknown arguments: --mod 1"),
        ("model: a\nsteps: 0", ("--step", "1"), "Unknown arguments: --step 1 (did you mean `--steps`?)."),
        ("rate: 1", (), "the following arguments are required: --model"),
        ("model: a", ("--rate", "fast"), "argument --rate: invalid float value: 'fast'"),
        ("model: a\nsteps: 0", (), "error: `steps` must be at least 1, got 0."),
    ],
)
def test_errors_of_the_command_line(
    text: str, argv: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, text, *argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_absent_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_with_config([ModelArguments], ["--config", str(tmp_path / "absent.yaml")])
    assert "No such file" in capsys.readouterr().err


def test_keys_of_another_script_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = parse(tmp_path, "model: a\nheads: 3", other_keys=("heads",))
    assert (model, run) == (ModelArguments("a"), RunArguments())
    with pytest.raises(SystemExit):
        parse(tmp_path, "model: a\nhead: 3", other_keys=("heads",))
    assert "`head` (did you mean `heads`?)" in capsys.readouterr().err


def test_positionals_and_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    positionals = {"source": "File to read.", "output": "Folder to write."}
    model, run, source, output = parse(tmp_path, "model: a", "in.pt", "out", positionals=positionals)
    assert (model.model, run.steps, source, output) == ("a", 10, "in.pt", "out")
    with pytest.raises(SystemExit):
        parse(tmp_path, "model: a", "in.pt", positionals=positionals)
    assert "the following arguments are required: output" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, "model: a\nsteps: 77", "--help", positionals=positionals, description="One line.\nAnother.")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "One line.\nAnother." in text
    assert "Folder to write." in text
    assert "(default: 77)" in text


def test_read_config(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("a: 1e3\nb: off\nc: 2024-01-01\nd: -.5\ne: 12\nf: .inf\ng: 'true'\nh: e5\n", encoding="utf-8")
    values = read_config(path)
    assert (values["a"], values["b"], values["d"], values["e"]) == (1000.0, "off", -0.5, 12)
    assert str(values["c"]) == "2024-01-01"
    assert (values["f"], values["g"], values["h"]) == (float("inf"), "true", "e5")
