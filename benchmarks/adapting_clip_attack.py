# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Part of adapting_clip.py: adversarial OOD images, the target images in the bank, and defences."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adapting_clip_data import Draw, cifar10, emoji, save_figure, say, table, write

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.evaluation.adversarial import adversarial_ood
from clipn_hf.evaluation.adversarial_pictures import draw_similarities, side_by_side
from clipn_hf.evaluation.robustness import (
    CLEAN,
    UNDEFENDED,
    WITH_TARGETS,
    WITHOUT_TARGETS,
    RobustnessReport,
    describe_attacks,
    evaluate_robustness,
)
from clipn_hf.files import atomic_path
from clipn_hf.methods import METHODS
from clipn_hf.probing import few_shot_mask

DETECTORS = ("mcm", "energy", "atd", "nearest_neighbors", "relative_mahalanobis", "linear_probe")
SHOWN = 6


class Setup(NamedTuple):
    """What is attacked: a draw, the OOD group, how many of its images, and how many ID images of a class are used."""

    title: str
    load: Any
    group: str
    attacked: int
    smoothness: tuple[float, ...]
    fit_shots: int | None
    id_shots: int | None
    # Photos may not be passed on.
    pictures: bool


# The smoothness of the paper, made for 224 pixels, less for the 64 of clipn-tiny, and none.
SETUPS = {
    "emoji": Setup("Emoji, the first draw, other categories", emoji, "far", 24, (5e3, 4e2, 0.0), None, None, True),
    "cifar10": Setup("CIFAR-10, MNIST", cifar10, "MNIST", 12, (0.0,), 30, 10, False),
}


def attack(root: Path, output: Path) -> None:
    """Attack every detector by the same images."""
    reports: dict[str, dict[str, RobustnessReport]] = {}
    for name, setup in SETUPS.items():
        say(setup.title)
        reports[name] = _attack_draw(name, setup, next(setup.load(root)), output)
    content = {name: {method: one.to_dict() for method, one in found.items()} for name, found in reports.items()}
    write(output / "attack.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write(output / "attack.md", _page(reports))


def _attack_draw(name: str, setup: Setup, draw: Draw, output: Path) -> dict[str, RobustnessReport]:
    encoder = draw.encoder
    assert isinstance(encoder, DualEncoder)
    fit_rows, id_rows = (
        range(len(labels)) if shots is None else few_shot_mask(labels, shots).nonzero().flatten().tolist()
        for labels, shots in ((draw.fit_labels, setup.fit_shots), (draw.id_labels, setup.id_shots))
    )
    fit_images = [draw.images["fit"][row] for row in fit_rows]
    fit_labels = [int(draw.fit_labels[row]) for row in fit_rows]
    id_images = [draw.images["id"][row] for row in id_rows]
    generator = torch.Generator().manual_seed(0)
    ood, targets = (
        [images[row] for row in torch.randperm(len(images), generator=generator)[: setup.attacked].tolist()]
        for images in (draw.images[setup.group], fit_images)
    )
    attacks = [
        adversarial_ood(ood, targets, encoder, smoothness=smoothness, progress=False)
        for smoothness in setup.smoothness
    ]
    reports = {}
    for method in DETECTORS:
        say(method)
        reports[method] = evaluate_robustness(
            OODDetector(encoder, draw.labels, method),
            id_images,
            ood,
            targets,
            fit_images=fit_images,
            fit_labels=fit_labels,
            attacks=attacks,
            progress=False,
        )
    neighbors = reports["nearest_neighbors"]
    before = neighbors.row(CLEAN, WITH_TARGETS).ood_scores.tolist()
    for one in attacks if setup.pictures else ():
        after = neighbors.row(one.name, WITH_TARGETS).ood_scores.tolist()
        picture = side_by_side(one, (before, after), title=f"{setup.title}, {one.name}", rows=range(SHOWN))
        with atomic_path(output / f"attack_{name}_{one.name}.png") as partial:
            picture.save(partial, format="PNG")
    save_figure(draw_similarities(attacks), output / f"attack_{name}_trace.png")
    return reports


def _page(reports: Mapping[str, Mapping[str, RobustnessReport]]) -> str:
    lines = [
        "# Adversarial OOD images",
        "OOD images, changed by 250 steps of Adam until clipn-tiny embeds them like an ID image of those that are "
        "fitted on. *Smooth* penalizes differences of neighbouring pixels, by the 5000 of the paper, which has "
        "images of 224 pixels, or by 400, *patchy* does not. Attacked images are judged as they are after being "
        "saved with 8 bits per colour. The same attacked images for all methods: the attack knows the encoder, not "
        "the detector. AUROC in percent with 95 % bootstrap intervals over images; "
        "below 50, the attacked images look more like ID ones than ID test images do.",
    ]
    for name, setup in SETUPS.items():
        found = reports[name]
        first = found["nearest_neighbors"]
        images = ", ".join(f"{count:,} {kind}" for kind, count in first.images.items())
        names = [one.name for one in first.attacks]
        lines += [f"## {setup.title}", f"Images: {images}.", describe_attacks(first.attacks)]
        rows = []
        for method, report in found.items():
            for bank in (WITH_TARGETS, WITHOUT_TARGETS) if METHODS[method].fit else (None,):
                label = METHODS[method].title + (f", {bank}" if bank else "")
                rows.append([label, *(_percent(report, one, bank, UNDEFENDED) for one in (CLEAN, *names))])
        lines.append(table(["method, targets in the bank", "no attack", *names], rows))
        lines.append("Defences, applied to all images, with the targets in the bank:")
        rows = []
        for method, report in found.items():
            bank = WITH_TARGETS if METHODS[method].fit else None
            for defence in dict.fromkeys(row.defence for row in report.rows):
                label = f"{METHODS[method].title}, {defence}"
                rows.append([label, *(_percent(report, one, bank, defence) for one in (CLEAN, *names))])
        lines.append(table(["method, defence", "no attack", *names], rows))
    return "\n\n".join(lines) + "\n"


def _percent(report: RobustnessReport, attacked: str, bank: str | None, defence: str) -> str:
    interval = report.row(attacked, bank, defence).auroc
    value = f"{100 * interval.estimate:.1f}"
    # There is none of few images.
    return value if interval.low != interval.low else f"{value} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
