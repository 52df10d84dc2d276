# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of a script: dataclasses filled from a YAML file and the command line.

A key of the file is an argument of the same name. It is converted and checked as on the command line, which overrides
the file.
"""

import argparse
import difflib
import re
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser


def parse_with_config(
    dataclass_types: Sequence[type[Any]],
    argv: Sequence[str] | None = None,
    *,
    positionals: Mapping[str, str] | None = None,
    other_keys: Collection[str] = (),
    **parser_arguments: Any,
) -> tuple[Any, ...]:
    """Fill dataclasses from the YAML file that `--config` names and from the command line, which overrides it.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses as [`~transformers.HfArgumentParser`] takes them.
        argv (`Sequence[str]`, *optional*): The command line without its first word. Defaults to that of the process.
            `null` means no value, as in the file, where there may be none.
        positionals (`Mapping[str, str]`, *optional*): Positional arguments, name and help; always given, always texts.
        other_keys (`Collection[str]`, *optional*):
            Keys that the file may have beside the arguments, because another script reads them. They are passed over.
        parser_arguments: Arguments of [`~argparse.ArgumentParser`], such as `description`.

    Returns:
        `tuple`: One object for each of `dataclass_types`, followed by the values of `positionals`.

    Raises:
        SystemExit: An argument or key is wrong. The message, which names file and key, is on the standard error.

    Example:

    ```python
    >>> from dataclasses import dataclass
    >>> from clipn_hf.script_arguments import parse_with_config

    >>> @dataclass
    ... class Arguments:
    ...     templates: list[str] | None = None
    ...     overwrite: bool = False
    >>> parse_with_config([Arguments], ["clip", "--overwrite", "true"], positionals={"output": "Folder to write."})
    (Arguments(templates=None, overwrite=True), 'clip')

    ```
    """
    positionals = positionals or {}
    kinds: list[Any] = list(dataclass_types)
    defaults = {"formatter_class": _HelpFormatter, "allow_abbrev": False}
    parser = HfArgumentParser(kinds, **{**defaults, **parser_arguments})
    for name, text in positionals.items():
        parser.add_argument(name, help=text)
    parser.add_argument("--config", help="YAML file with values for any of the options.")
    argv, nulls = _take_nulls(parser, sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    if path is not None:
        try:
            _set_defaults(parser, read_config(path), other_keys)
        except (OSError, ValueError, yaml.YAMLError) as error:
            parser.error(f"--config {path}: {error}")
    parser.set_defaults(**dict.fromkeys(nulls))
    # Before the dataclasses are made, whose complaints about values would hide that a name is misspelt.
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        parser.error(f"Unknown arguments: {' '.join(unknown)}{_suggestion(unknown[0].partition('=')[0], options)}.")
    try:
        parsed: Any = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    *objects, others = parsed
    return (*objects, *(getattr(others, name) for name in positionals))


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of arguments.

    Truth values and numbers are those of YAML 1.2: `no` is a text, as in `save_strategy: no`, and `1e-5` a number.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict[str, Any]`: Its keys and values.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a mapping, or one of its keys is not a text.
        yaml.YAMLError: It is no YAML.
    """
    values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(values, dict):
        kind = "nothing" if values is None else type(values).__name__
        raise ValueError(f"The file must hold lines of the form `argument: value`, got {kind}.")
    if strangers := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"The keys of the file must be names of arguments, got {strangers[0]!r}.")
    return values


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults with every argument, and the description line by line as it was written."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but for truth values and numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"),
    "-+.0123456789",
)


def _type_hints(parser: HfArgumentParser) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for kind in parser.dataclass_types:
        own: dict[str, Any] = get_type_hints(kind)
        hints |= {item.name: own[item.name] for item in fields(kind) if item.init}
    return hints


def _take_nulls(parser: HfArgumentParser, argv: Sequence[str]) -> tuple[list[str], set[str]]:
    """Take from a command line the options whose one value is `null`, where there may be none; say which they are."""
    hints = _type_hints(parser)
    optional = {
        option: action
        for action in parser._actions
        for option in action.option_strings
        if types.NoneType in get_args(hints.get(action.dest))
    }
    words, parts, nulls = list(argv), list[tuple[str | None, list[str]]](), set[str]()
    while words:
        option, equals, value = words[0].partition("=")
        if (action := optional.get(option)) is None:
            parts.append((None, [words.pop(0)]))
            continue
        end = next((place for place, word in enumerate(words) if place and word.startswith("--")), len(words))
        end = 1 if equals else end if action.nargs == "+" else min(end, 2)
        # The last one counts, as of other values.
        if ([value] if equals else words[1:end]) == ["null"]:
            nulls.add(action.dest)
            action.required = False
        else:
            nulls.discard(action.dest)
        parts.append((action.dest, words[:end]))
        del words[:end]
    given = [
        part
        for name, part in parts
        if name not in nulls and part[1:] != ["null"] and not (name is not None and part[0].endswith("=null"))
    ]
    return [word for part in given for word in part], nulls


def _set_defaults(parser: HfArgumentParser, values: Mapping[str, Any], other_keys: Collection[str]) -> None:
    """Make the values of a file the defaults of the parser."""
    hints = _type_hints(parser)
    if unknown := [key for key in values if key not in hints and key not in other_keys]:
        shown = ", ".join(f"`{key}`{_suggestion(key, [*hints, *other_keys])}" for key in unknown)
        raise ValueError(f"The file has keys that are no arguments: {shown}.")
    # The second action of a name, if there is one, is the flag that switches it off.
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    for key in hints.keys() & values.keys():
        try:
            converted = _convert(values[key], hints[key], actions[key])
        except ValueError as error:
            raise ValueError(f"`{key}` {error}.") from error
        parser.set_defaults(**{key: converted})
        actions[key].required = False


def _convert(value: Any, hint: Any, action: argparse.Action) -> Any:
    """The value of a key as the dataclass takes it. Errors complete the sentence that the name of the key begins."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = {get_origin(member) or member for member in members}
    if value is None:
        if types.NoneType not in kinds:
            raise ValueError("has no value; give one, or leave the line out for the default")
        return None
    if isinstance(value, Mapping):
        if dict not in kinds:
            raise ValueError(f"takes no mapping, got {value!r}")
        return dict(value)
    if isinstance(value, list):
        if list not in kinds:
            raise ValueError(f"takes one value, got the list {value!r}")
        return [_convert_scalar(item, action) for item in value]
    if isinstance(value, bool) and bool in kinds:
        return value
    scalar = _convert_scalar(value, action)
    return [scalar] if action.nargs == "+" else scalar


def _convert_scalar(value: Any, action: argparse.Action) -> Any:
    if value is None or isinstance(value, list | Mapping):
        raise ValueError(f"takes a list of single values, got {value!r} in it")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    convert: Any = action.type or str
    try:
        converted = convert(text)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        expected = {int: "a whole number", float: "a number"}.get(convert, "true or false")
        raise ValueError(f"must be {expected}, got {text!r}") from error
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"must be one of {', '.join(map(str, action.choices))}, got {text!r}")
    return converted


def _suggestion(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


__all__ = ["parse_with_config", "read_config"]
