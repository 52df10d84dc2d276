# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds: records of it, and the sentences that tell it."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

MAX_ITEMS = 10
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something about a benchmark that its user should know.

    Args:
        severity (`str`):
            `"error"`, where results would be wrong; `"warning"`, where they would be misleading or worse than they
            need be; `"note"`, where somebody should have a look.
        check (`str`): What was looked for, such as `"duplicate-label"`.
        message (`str`): What was found, how often, and what to do about it.
        items (`tuple[str, ...]`): The labels, images or sets concerned, at most 10 of them.
    """

    severity: Severity
    check: str
    message: str
    items: tuple[str, ...] = ()


def format_findings(findings: Iterable[Finding], width: int = 100) -> list[str]:
    """Write findings as lines of text.

    Args:
        findings (iterable of [`Finding`]): What to write.
        width (`int`, *optional*, defaults to 100): Where to break sentences.

    Returns:
        `list[str]`: A sentence and an indented line per item for each finding, and what errors mean for results; one
        line if there are none.
    """
    findings = list(findings)
    lines: list[str] = []
    for finding in findings:
        lead = f"{finding.severity.capitalize()} ({finding.check}): "
        lines += textwrap.wrap(
            lead + finding.message, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        lines += [f"    {_printable(item)}" for item in finding.items]
    errors = [finding.check for finding in findings if finding.severity == "error"]
    if errors:
        respects = list(dict.fromkeys(errors))
        verdict = (
            f"Results are wrong in {'this respect' if len(respects) == 1 else 'these respects'} until "
            f"{'it is' if len(respects) == 1 else 'they are'} put right: {', '.join(respects)}."
        )
        lines += textwrap.wrap(verdict, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines or ["Nothing to report."]


def check_strings(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(
            f'`{name}` must be a list of strings such as ["cat", "dog"], got {type(values).__name__}: {values!r}.'
        )
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(
                f"`{name}[{position}]` must be a string, got {type(value).__name__}: {value!r}. "
                "Convert it first, for example with `str(...)`."
            )
    return list(values)


def make_finding(
    severity: Severity, check: str, message: str, items: Iterable[str], total: int | None = None
) -> Finding:
    items = list(items)
    shown = tuple(shorten(item, 200) for item in items[:MAX_ITEMS])
    rest = (len(items) if total is None else total) - len(shown)
    return Finding(severity, check, f"{message} And {rest} more than are listed." if rest else message, shown)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


def counted(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def are(things: Iterable[Any]) -> str:
    return "is" if len(list(things)) == 1 else "are"


def have(things: Sequence[Any]) -> str:
    return "has" if len(things) == 1 else "have"


def them(things: Sequence[Any]) -> str:
    return "it" if len(things) == 1 else "them"


def against(ood_label: str, label: str) -> str:
    return f"{ood_label!r} (OOD) and {label!r} (ID)"


def shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def explained(items: Iterable[str], explanation: str) -> list[str]:
    return [f"{item}: {explanation}" for item in items]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


__all__ = [
    "MAX_ITEMS",
    "Finding",
    "Severity",
    "against",
    "are",
    "by_severity",
    "check_strings",
    "counted",
    "explained",
    "format_findings",
    "have",
    "make_finding",
    "shorten",
    "them",
]
