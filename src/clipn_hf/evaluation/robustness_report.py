# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What an attack left of a detector, in numbers and in tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .adversarial import AdversarialImages, write_number
from .defences import DEFENCES
from .metrics import Interval
from .results import CONVENTION
from .tables import escape_markdown, grid, public_name

CLEAN = "none"
UNDEFENDED = "none"
AS_FITTED, WITH_TARGETS, WITHOUT_TARGETS = "as fitted", "with targets", "without targets"
# With fewer images of a kind, an interval by resampling them says nothing.
MIN_FOR_INTERVALS = 10
# The smoothness of the paper, and what it is made for.
SMOOTHNESS_OF_PAPER, SIDE_OF_PAPER = 5000, 224


@dataclass(frozen=True, eq=False)
class RobustnessRow:
    """How a detector did on one kind of OOD images.

    Args:
        attack (`str`): The name of the attack; `CLEAN` for the OOD images as they were.
        bank (`str` or `None`):
            What the method was fitted on: `WITH_TARGETS`, `WITHOUT_TARGETS`, or `AS_FITTED` for the detector as it
            came; None for methods that are not fitted.
        defence (`str`): The name of the defence; `UNDEFENDED` for none.
        auroc ([`~clipn_hf.evaluation.metrics.Interval`]):
            AUROC of ID against these images, with its 95 % interval, whose ends are NaN with fewer than 10 ID images
            or 10 of these.
        fpr95 ([`~clipn_hf.evaluation.metrics.Interval`]):
            The share of these images that are taken for known when 95 % of the ID images are, in the same way.
        called_known (`float` or `None`):
            The share of these images that the detector calls known by its own threshold or rule; None without one.
        id_scores (`numpy.ndarray` of shape `(id images,)`): OOD-ness of the ID images; higher = more OOD.
        ood_scores (`numpy.ndarray` of shape `(images,)`): OOD-ness of these images.
    """

    attack: str
    bank: str | None
    defence: str
    auroc: Interval
    fpr95: Interval
    called_known: float | None
    id_scores: npt.NDArray[np.float32]
    ood_scores: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """What `evaluate_robustness` found out.

    Args:
        detector (`dict`): What was attacked, as [`describe_detector`] says it.
        images (`dict`): How many images of each kind there were; None where that is not known.
        data_sha256 (`dict[str, str]`): SHA-256 of the images of each kind, whatever their order.
        attacks (`list` of [`~clipn_hf.evaluation.adversarial.AdversarialImages`]): The attacked images.
        rows (`list` of [`RobustnessRow`]): By bank, defence and attack.
        bootstrap (`dict`): `"resamples"`, `"confidence"` and `"seed"` of the intervals.
        versions (`dict[str, str]`): Of Python and of the packages that computed this.
    """

    detector: dict[str, Any]
    images: dict[str, int | None]
    data_sha256: dict[str, str]
    attacks: list[AdversarialImages]
    rows: list[RobustnessRow]
    bootstrap: dict[str, Any]
    versions: dict[str, str]

    def __repr__(self) -> str:
        model = self.detector["model"]
        return (
            f"RobustnessReport(method={self.detector['method']!r}, model={model['id'] or model['class']!r}, "
            f"attacks={[attack.name for attack in self.attacks]}, {len(self.rows)} rows)"
        )

    def row(self, attack: str = CLEAN, bank: str | None = None, defence: str = UNDEFENDED) -> RobustnessRow:
        """Find a row.

        Args:
            attack (`str`, *optional*, defaults to `CLEAN`): As in [`RobustnessRow`].
            bank (`str`, *optional*): As in [`RobustnessRow`]; by default the first that there is.
            defence (`str`, *optional*, defaults to `UNDEFENDED`): As in [`RobustnessRow`].

        Returns:
            [`RobustnessRow`]

        Raises:
            ValueError: There is none.
        """
        wanted = (attack, self.rows[0].bank if bank is None else bank, defence)
        for row in self.rows:
            if (row.attack, row.bank, row.defence) == wanted:
                return row
        raise ValueError(f"There is no row of attack {wanted[0]!r}, bank {wanted[1]!r} and defence {wanted[2]!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Give all numbers, without images and scores.

        Returns:
            `dict`: Of what JSON knows, with the convention of the metrics and the versions.
        """

        def plain(interval: Interval) -> dict[str, float | None]:
            return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}

        rows = [
            {
                "attack": row.attack,
                "bank": row.bank,
                "defence": row.defence,
                "auroc": plain(row.auroc),
                "fpr95": plain(row.fpr95),
                "called_known": row.called_known,
            }
            for row in self.rows
        ]
        return {
            "detector": self.detector,
            "images": self.images,
            "data_sha256": self.data_sha256,
            "attacks": [attack.summarize() for attack in self.attacks],
            "defences": {name: DEFENCES[name].title for name in self._names("defence") if name != UNDEFENDED},
            "rows": rows,
            "bootstrap": self.bootstrap,
            "convention": dict(CONVENTION),
            "versions": self.versions,
        }

    def to_markdown(self) -> str:
        """Write the numbers as tables.

        Returns:
            `str`: Of Markdown.
        """
        images = ", ".join(
            f"{kind}: unknown" if count is None else f"{count:,} {kind}" for kind, count in self.images.items()
        )
        has_intervals = any(not math.isnan(row.auroc.low) for row in self.rows)
        intervals = (
            ", with 95 % bootstrap intervals over images"
            if has_intervals
            else f"; with fewer than {MIN_FOR_INTERVALS} images of a kind there are no intervals"
        )
        parts = [
            f"{describe_in_words(self.detector)} Images: {images}.",
            describe_attacks(self.attacks),
            f"AUROC, %{intervals}; lower = the attack succeeds.",
            self._table(lambda row: _percent(row.auroc)),
            "Images taken for known when 95 % of the ID images are, %; higher = the attack succeeds.",
            self._table(lambda row: _percent(row.fpr95)),
        ]
        deciding = [bank for bank in self._names("bank") if self.row(bank=bank).called_known is not None]
        if deciding:
            parts += [
                "Images that the detector calls known by its own threshold or rule, %.",
                self._table(lambda row: f"{100 * (row.called_known or 0.0):.1f}", deciding),
            ]
        defences = [name for name in self._names("defence") if name != UNDEFENDED]
        if defences:
            listed = "; ".join(f"{name}: {DEFENCES[name].title}" for name in defences)
            parts.append(
                f"Defences ({listed}) change ID and OOD images alike, and those that the method is fitted on here. "
                "The attack knows nothing of them: one that does may defeat them, too."
            )
        return "\n\n".join(parts) + "\n"

    def _names(self, column: str) -> list[str]:
        return list(dict.fromkeys(getattr(row, column) for row in self.rows))

    def _table(self, write: Callable[[RobustnessRow], str], banks: Sequence[str | None] | None = None) -> str:
        attacks = self._names("attack")
        has_banks = self._names("bank") != [None]
        header = [
            *(["bank"] if has_banks else []),
            "defence",
            *("no attack" if one == CLEAN else one for one in attacks),
        ]
        lines: list[list[str]] = [
            [
                *([str(bank)] if has_banks else []),
                defence,
                *(write(self.row(attack, bank, defence)) for attack in attacks),
            ]
            for bank in banks or self._names("bank")
            for defence in self._names("defence")
        ]
        return _table(header, lines, len(header) - len(attacks))


def describe_attacks(attacks: Sequence[AdversarialImages]) -> str:
    """Write what attacks did to images as a table.

    Args:
        attacks (`Sequence` of [`~clipn_hf.evaluation.adversarial.AdversarialImages`]): At least one.

    Returns:
        `str`: Of Markdown: means over the images.
    """
    header = ["attack", "smoothness", "steps", "cosine before", "after", "as saved", "L2", "L∞ (of 255)"]
    rows = []
    for facts in (attack.summarize() for attack in attacks):
        cosines = [f"{facts[name]:.3f}" for name in ("start_similarity", "similarity", "saved_similarity")]
        settings = [write_number(facts["settings"]["smoothness"]), str(facts["settings"]["steps"])]
        rows.append([facts["name"], *settings, *cosines, f"{facts['l2']:.2f}", f"{255 * facts['linf']:.1f}"])
    lines = [_table(header, rows, 1)]
    sides = {attack.images.shape[-1] for attack in attacks if attack.settings["smoothness"] >= SMOOTHNESS_OF_PAPER / 2}
    if small := sorted(side for side in sides if side < SIDE_OF_PAPER):
        lines.append(
            f"The smoothness of {SMOOTHNESS_OF_PAPER} is made for images of {SIDE_OF_PAPER} pixels. On these of "
            f"{', '.join(map(str, small))} it allows less; a lower one corresponds to it."
        )
    return "\n\n".join(lines)


def describe_in_words(detector: Mapping[str, Any]) -> str:
    """Say in a sentence of Markdown what [`describe_detector`] says."""
    settings = "".join(f", {name} = {value}" for name, value in detector["settings"].items())
    model = detector["model"]
    return escape_markdown(
        f"Method {detector['method']}{settings}; model {name_model(model)}, {model['dtype']}; "
        f"{len(detector['labels']):,} labels."
    )


def name_model(model: Mapping[str, Any]) -> str:
    """Name a model by its class and by where it lies, which may be called after something else, as a detector is."""
    return model["class"] if model["id"] is None else f"{model['class']} of {public_name(model['id'])}"


def _percent(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{100 * interval.estimate:.1f}"
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Write a table in Markdown whose first columns are texts and whose others are numbers."""
    return grid(
        [escape_markdown(cell) for cell in header],
        [[*map(escape_markdown, cells[:texts]), *cells[texts:]] for cells in rows],
        texts,
    )


__all__ = [
    "AS_FITTED",
    "CLEAN",
    "MIN_FOR_INTERVALS",
    "UNDEFENDED",
    "WITHOUT_TARGETS",
    "WITH_TARGETS",
    "RobustnessReport",
    "RobustnessRow",
    "describe_attacks",
    "describe_in_words",
    "name_model",
]
