# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: the embedded checkpoint on the sample pictures of the package, half of which show none of the labels."""

import importlib.resources
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .detector import OODDetector, OODResult
from .encoders import EMBEDDED_CHECKPOINT
from .evaluation.contact_sheet import Tile, contact_sheet
from .images import load_image
from .verdicts import VERDICTS

SAMPLES = str(importlib.resources.files("clipn_hf") / "samples")


@dataclass(frozen=True)
class JudgedSample:
    """A sample picture, the truth about it and what the detector says.

    Args:
        file (`str`): Its file name.
        name (`str`): What it shows.
        known (`bool`): Whether that is one of the labels.
        image (`PIL.Image.Image`): The picture.
        result (`OODResult`): The detector's answer.
    """

    file: str
    name: str
    known: bool
    image: Image.Image
    result: OODResult

    @property
    def correct(self) -> bool:
        """Tell whether the verdict agrees with the truth."""
        return self.result["is_ood"] is not self.known


def judge_samples(
    model: str | os.PathLike[str] = EMBEDDED_CHECKPOINT, folder: str | os.PathLike[str] = SAMPLES
) -> list[JudgedSample]:
    """Run ATD, without a threshold, on sample pictures.

    Args:
        model (`str` or `os.PathLike`, *optional*): Id or folder of a CLIPN; by default the embedded one.
        folder (`str` or `os.PathLike`, *optional*):
            Folder with pictures and a `samples.json`: `{"labels": […], "images": [{"file", "name", "known"}, …]}`;
            by default the one in the package.

    Returns:
        `list[JudgedSample]`: First the known ones, then the unknown ones, each by rising score.
    """
    samples = json.loads(Path(folder, "samples.json").read_text(encoding="utf-8"))
    images = [load_image(Path(folder, sample["file"])) for sample in samples["images"]]
    results = OODDetector(model, samples["labels"])(images, top_k=1)
    judged = [
        JudgedSample(sample["file"], sample["name"], sample["known"], image, result)
        for sample, image, result in zip(samples["images"], images, results, strict=True)
    ]
    return sorted(judged, key=lambda sample: (not sample.known, sample.result["ood_score"]))


def describe_results(samples: Sequence[JudgedSample]) -> tuple[str, str, str]:
    """Count the verdicts that are right: in all, among the known samples, and among the unknown ones."""
    known = [sample for sample in samples if sample.known]
    unknown = [sample for sample in samples if not sample.known]
    right_known, right_unknown = (sum(sample.correct for sample in group) for group in (known, unknown))
    right_label = sum(sample.correct and sample.result["label"] == sample.name for sample in known)
    return (
        f"{right_known + right_unknown} of {len(samples)} pictures told apart correctly",
        f"In the list of labels: {right_known} of {len(known)} recognised as known, {right_label} by the right label",
        f"Not in the list of labels: {right_unknown} of {len(unknown)} recognised as unknown",
    )


def demo_table(samples: Sequence[JudgedSample]) -> Table:
    """Lay out verdict, score, nearest label and truth of each sample, in the order given."""
    total, known, unknown = describe_results(samples)
    table = Table(
        title=total,
        caption=f"p: the probability of the nearest label.\n{known}.\n{unknown}.",
        title_style="bold",
        caption_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.title_justify = table.caption_justify = "left"
    table.add_column("Picture", no_wrap=True)
    table.add_column("Truth")
    table.add_column("Verdict")
    table.add_column("OOD score", justify="right")
    table.add_column("Nearest label", no_wrap=True)
    table.add_column("p", justify="right")
    table.add_column("")
    for index, sample in enumerate(samples):
        verdict = VERDICTS[sample.result["is_ood"]]
        table.add_row(
            sample.name,
            VERDICTS[not sample.known].word,
            f"[{verdict.color}]{verdict.word}[/]",
            f"{sample.result['ood_score']:.3f}",
            sample.result["label"],
            f"{sample.result['score']:.0%}",
            "✓" if sample.correct else "[bold red]✗[/]",
            end_section=index + 1 < len(samples) and samples[index + 1].known is not sample.known,
        )
    return table


def demo_sheet(samples: Sequence[JudgedSample]) -> Image.Image:
    """Draw the samples as a contact sheet, known and unknown ones in a section each."""
    total, known, unknown = describe_results(samples)
    return contact_sheet(
        [
            Tile(
                sample.image,
                sample.result["is_ood"],
                sample.result["ood_score"],
                sample.result["label"],
                sample.correct,
                known if sample.known else unknown,
            )
            for sample in samples
        ],
        title=total,
        subtitle="Frame: the verdict. Below it: the nearest label and the OOD score, by which each group is sorted.",
    )
