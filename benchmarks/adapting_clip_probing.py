# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Part of adapting_clip.py: linear probes with labels, few labels and pseudo-labels, against zero-shot scores."""

import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from adapting_clip_data import (
    CONVENTION,
    RESAMPLES,
    ZERO_SHOT,
    Draw,
    Results,
    draw_lines,
    fitted,
    save_figure,
    say,
    spread,
    table,
    write,
)
from adapting_clip_scores import DATA

from clipn_hf.evaluation.metrics import id_accuracy
from clipn_hf.evaluation.results import percentile_interval
from clipn_hf.probing import few_shot_mask, train_linear_probe
from clipn_hf.scores import energy, nearest_neighbors

CLASSIFIERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear probe": ("linear_probe", {}),
    "PLP, confidence ≥ 0.9": ("plp", {"min_confidence": 0.9}),
    "PLP, all images": ("plp", {"min_confidence": None}),
}
SCORES = {"msp": "MSP", "energy": "Energy", "relative_mahalanobis": "RMD on logits"}
SHOTS = (1, 2, 4, 8, 16)
SHOT_SEEDS = 10
SHOTS_ON = ("halves", "emoji", "cifar10")


def probing(root: Path, output: Path) -> None:
    """Train probes, and judge by their logits."""
    results = Results()
    for name, (title, load, _) in DATA.items():
        say(title)
        for number, draw in enumerate(load(root)):
            _judge_zero_shot(results, name, draw)
            with warnings.catch_warnings():
                # Of few images per class the covariance of the logits is shrunk, which the page says.
                warnings.simplefilter("ignore")
                for classifier, (method, settings) in CLASSIFIERS.items():
                    _judge_classifier(results, name, draw, classifier, method, settings)
            if name in SHOTS_ON:
                seeds = range(SHOT_SEEDS) if len(draw.id) >= 1000 else [number]
                for seed in seeds:
                    _judge_shots(results, name, draw, seed)
    results.save(output / "probing.json")
    write(output / "probing.md", _page(results))
    _draw_shots(results, output)


def _judge_zero_shot(results: Results, name: str, draw: Draw) -> None:
    for method in ("msp", "energy", "mcm"):
        detector = fitted(draw, method)
        results.judge(name, f"zero-shot, {ZERO_SHOT[method]}", draw, detector)
    _note_accuracy(results, name, "zero-shot", detector.predict(draw.id), draw)
    results.judge(name, "1-NN", draw, fitted(draw, "nearest_neighbors"))
    right = fitted(draw, "mcm").predict(draw.fit) == draw.fit_labels
    results.facts.setdefault("right pseudo-labels", {}).setdefault(name, []).append(
        round(100 * right.double().mean().item(), 3)
    )


def _judge_classifier(
    results: Results, name: str, draw: Draw, classifier: str, method: str, settings: Mapping[str, Any]
) -> None:
    for score, title in SCORES.items():
        try:
            detector = fitted(draw, method, score=score, **settings)
        except ValueError as error:
            # Where no pseudo-label is sure enough, or those that are leave one class, there is no probe.
            results.facts.setdefault("failed", {}).setdefault(f"{name}, {classifier}, {title}", []).append(str(error))
            continue
        results.judge(name, f"{classifier}, {title}", draw, detector)
        if score == "msp":
            _note_accuracy(results, name, classifier, detector.predict(draw.id), draw)


def _note_accuracy(results: Results, name: str, classifier: str, predictions: torch.Tensor, draw: Draw) -> None:
    right = (predictions == draw.id_labels).double().numpy()
    cell = results.facts.setdefault("accuracy", {}).setdefault(name, {}).setdefault(classifier, {"accuracy": []})
    cell["accuracy"].append(round(100 * right.mean().item(), 3))
    if len(right) >= 1000:
        # The resamples are the same for all classifiers.
        drawn = torch.randint(len(right), (RESAMPLES, len(right)), generator=torch.Generator().manual_seed(0)).numpy()
        cell["interval"] = [round(100 * end, 3) for end in percentile_interval(right[drawn].mean(axis=1))]


def _judge_shots(results: Results, name: str, draw: Draw, seed: int) -> None:
    most = int(draw.fit_labels.bincount(minlength=len(draw.labels)).min())
    for shots in SHOTS:
        # Drawings of a concept are five to ten: with fewer than the shots the last points would say nothing.
        if shots > (most if name != "emoji" else 8):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = few_shot_mask(draw.fit_labels, shots, seed)
        bank, labels = draw.fit[chosen], draw.fit_labels[chosen]
        probe = train_linear_probe(bank, labels, num_classes=len(draw.labels), seed=seed, device="cpu", progress=False)
        with torch.inference_mode():
            logits = {group: probe(images) for group, images in {"id": draw.id, **draw.ood}.items()}
        accuracy = 100 * id_accuracy(logits["id"].argmax(dim=1).numpy(), draw.id_labels.numpy())
        question = f"{name}: shots"
        results.add(
            question,
            f"probe, {shots}",
            energy(logits["id"]),
            {group: energy(logits[group]) for group in draw.ood},
            accuracy=accuracy,
        )
        nearest = (draw.id @ bank.T).argmax(dim=1)
        by_neighbor = 100 * id_accuracy(labels[nearest].numpy(), draw.id_labels.numpy())
        results.add(
            question,
            f"1-NN, {shots}",
            nearest_neighbors(draw.id, bank),
            {group: nearest_neighbors(images, bank) for group, images in draw.ood.items()},
            accuracy=by_neighbor,
        )


def _page(results: Results) -> str:
    lines = [
        "# Linear probes and pseudo-labels",
        "The recipe of the paper: standardized features, Adam, 100 epochs, batches of 256, learning rate 1e-3, weight "
        "decay 1e-3. PLP trains on the labels that the texts give, of images of which the text logits are sure (0.9, "
        "as the paper has it) or of all (as the published code has it). Real embeddings have one template, `a {}`; "
        "clipn-tiny has its own five. *RMD on logits* is the relative Mahalanobis distance of the logits, shrunk "
        "where images are few.",
        CONVENTION,
    ]
    failed = results.facts.get("failed", {})
    for name, (title, _, groups) in DATA.items():
        right = spread({"share": results.facts["right pseudo-labels"][name]}, "share")
        accuracy = results.facts["accuracy"][name]
        lines += [
            f"## {title}",
            f"Of the images to fit on, {right} % have the right label as the nearest text.",
            table(
                ["classifier", "ID accuracy, %"],
                [[classifier, spread(cell, "accuracy")] for classifier, cell in accuracy.items()],
            ),
            results.table(name, "classifier, score", groups),
        ]
        lines += [
            f"*{key.removeprefix(f'{name}, ')}* was left out in {len(messages)} draws: {messages[0]}"
            for key, messages in failed.items()
            if key.startswith(f"{name}, ")
        ]
        pairs = [
            *((f"{classifier}, {score}", "zero-shot, MSP") for classifier in CLASSIFIERS for score in SCORES.values()),
            *((f"{classifier}, RMD on logits", "1-NN") for classifier in CLASSIFIERS),
            *((f"linear probe, {score}", f"PLP, all images, {score}") for score in SCORES.values()),
            *((f"PLP, all images, {score}", f"PLP, confidence ≥ 0.9, {score}") for score in SCORES.values()),
        ]
        rows = [
            [f"{one} − {other}", *(results.difference(name, one, other, group) for group in groups)]
            for one, other in pairs
        ]
        lines += ["Differences in AUROC:", table(["difference", *groups.values()], rows)]
    lines += [
        "## Few shots",
        "Probes on so many images of each class, scored by energy, and the nearest neighbor among the same images. "
        "CIFAR-10 on clipn-tiny: ten draws of images; a few concepts of emoji have fewer than eight drawings.",
    ]
    for name in SHOTS_ON:
        question, groups = f"{name}: shots", DATA[name][2]
        rows = [
            [
                variant,
                *(
                    spread(results.values[question, variant, group], metric)
                    for group, metric in [
                        (next(iter(groups)), "accuracy"),
                        *((group, "auroc") for group in groups),
                    ]
                ),
            ]
            for variant in results.variants(question)
        ]
        header = ["method, shots", "accuracy, %", *(f"{title}, AUROC ↑" for title in groups.values())]
        lines += [f"### {DATA[name][0]}", table(header, rows)]
    return "\n\n".join(lines) + "\n"


def _draw_shots(results: Results, output: Path) -> None:
    titles = {"halves": "CIFAR-10, ViT-B/32", "emoji": "Emoji, clipn-tiny", "cifar10": "CIFAR-10, clipn-tiny"}
    opponents = {"halves": "photos", "emoji": "near", "cifar10": "CIFAR-100"}

    def curve(name: str, method: str, group: str, metric: str) -> list[tuple[float, list[float]]]:
        question = f"{name}: shots"
        return [
            (float(variant.split(", ")[1]), results.values[question, variant, group][metric])
            for variant in results.variants(question)
            if variant.startswith(f"{method}, ")
        ]

    panels: dict[str, Any] = {}
    levels = {}
    for name, title in titles.items():
        group = next(iter(DATA[name][2]))
        zero_shot = statistics.mean(results.facts["accuracy"][name]["zero-shot"]["accuracy"])
        shown = f"{title}: accuracy"
        panels[shown] = {method: curve(name, method, group, "accuracy") for method in ("probe", "1-NN")}
        levels[shown] = {"zero-shot (AUROC: MSP)": zero_shot}
    for name, title in titles.items():
        group = next(iter(DATA[name][2]))
        shown = f"{title.split(',')[0]}, {opponents[name]}: AUROC"
        panels[shown] = {method: curve(name, method, group, "auroc") for method in ("probe", "1-NN")}
        msp = results.values[name, "zero-shot, MSP", group]["auroc"]
        levels[shown] = {"zero-shot (AUROC: MSP)": statistics.mean(msp)}
    figure = draw_lines(panels, "images per class", "%", log=True, levels=levels, columns=3)
    save_figure(figure, output / "shots.png")
