# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of few_shot.py, made of the numbers that its parts have written."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapting_clip_data import (
    COLORS,
    FADED,
    INK,
    MARKERS,
    RULE,
    make_figure,
    save_figure,
    table,
    write,
)
from few_shot_sets import SETS, Bank
from few_shot_training import ALPHA, BETA, UNKNOWN_WORD, Labels, choose_patches, maps
from scipy.stats import t as student

from clipn_hf import DualEncoder
from clipn_hf.demo import SAMPLES
from clipn_hf.image_inputs import prepare_image
from clipn_hf.images import load_image

TITLES = {
    "emoji": "drawings",
    "cifar10": "CIFAR-10",
    "tiny_imagenet": "Tiny ImageNet",
    "clothing": "clothing",
}
SCORES = {
    "mcm": "MCM",
    "gl_mcm": "GL-MCM",
    "max_logit": "MaxLogit",
    "mcm_constant": "MCM with a constant",
    "unknown": "unknown probability",
    "mcm_unknown": "MCM with unknown",
    "gl_mcm_unknown": "GL-MCM with unknown",
}
METHODS = ("CoOp", "LoCoOp", "CLIP-OS")
# The score of each method in its paper; that of CLIP-OS is one of the combinations that it leaves open.
OWN = {"CoOp": "mcm", "LoCoOp": "gl_mcm", "CLIP-OS": "mcm_unknown"}
ZERO_SHOT = ("zero-shot", "zero-shot, first words")
# What is compared of shots, and the names of the columns that it belongs in
PARTS = {"shots, whole": "global", "shots, relevant": "relevant"}
LEARNED = ("mcm", "gl_mcm", "max_logit", "mcm_constant")
WITH_UNKNOWN = ("mcm_unknown", "unknown", "gl_mcm_unknown")
# Where there is less room
SHOWN = ("mcm", "gl_mcm", "max_logit")
SHOTS = (1, 2, 4)
ABOUT = (
    "Made by `benchmarks/few_shot.py` with the embedded clipn-tiny; [docs/few_shot.md](../../../docs/few_shot.md) "
    "says what the numbers mean, and on what settings were chosen. AUROC and FPR95 in percent. FPR95 is the share of "
    "OOD images accepted when 95 % of the ID images are kept (*ID positive*, exact rule). ± and brackets are 95 % "
    "intervals of Student's t over seeds, each of which draws the shots and, but for CIFAR-10, the ID classes. Where "
    "test images are the same for all seeds, the intervals do not tell how other test images would do. Differences "
    "are paired by seed. Where a data set has several OOD sets, its AUROC is the mean of near and far, and far the "
    "mean of the far sets. The mean over data sets takes the same seed of all of them."
)


class Numbers:
    """The rows of all data sets that there are."""

    def __init__(self, output: Path) -> None:
        self.data: dict[str, dict[str, Any]] = {
            name: json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
            for name in SETS
            if (output / f"{name}.json").exists()
        }
        self.rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for name, found in self.data.items():
            for row in found["rows"]:
                self.rows.setdefault((name, row["question"], row["model"], row["shots"]), []).append(row)

    def find(self, name: str, question: str, model: str, shots: int) -> list[dict[str, Any]]:
        """The rows of all seeds."""
        return sorted(self.rows.get((name, question, model, shots), []), key=lambda row: row["seed"])

    def models(self, name: str, question: str) -> list[str]:
        """The models of a question, in the order in which they were measured."""
        return list(dict.fromkeys(key[2] for key in self.rows if key[:2] == (name, question)))

    def values(
        self, name: str, question: str, model: str, shots: int, score: str, metric: str = "auroc", group: str = ""
    ) -> list[float]:
        """One number for each seed: of a metric by a score, or the accuracy."""
        rows = self.find(name, question, model, shots)
        if metric.startswith("accuracy"):
            return [row[metric] for row in rows if metric in row]
        found = [row[metric][score] for row in rows if score in row[metric]]
        return [one[group] if group else mean_of_groups(one) for one in found]

    def over_sets(
        self, question: str, model: str, shots: int, score: str, metric: str = "auroc", names: Sequence[str] = ()
    ) -> list[float]:
        """The mean over data sets, one number for each seed."""
        found = [self.values(name, question, model, shots, score, metric) for name in names or self.data]
        if not all(found):
            return []
        return [statistics.mean(values) for values in zip(*found, strict=False)]


def mean_of_groups(values: Mapping[str, float]) -> float:
    """The mean of near and far, where the latter is that of all far sets."""
    far = [value for name, value in values.items() if name != "near"]
    return statistics.mean([values["near"], *([statistics.mean(far)] if far else [])])


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def mean_text(values: Sequence[float]) -> str:
    """A mean with its interval."""
    if not values:
        return ""
    half = interval(values)
    return f"{statistics.mean(values):.1f} ± {half:.1f}" if half else f"{values[0]:.1f}"


def paired(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Differences of the same seeds; one value counts for all of them."""
    if len(others) == 1 < len(values):
        others = list(others) * len(values)
    return [one - other for one, other in zip(values, others, strict=False)]


def difference_text(values: Sequence[float], others: Sequence[float]) -> str:
    """A paired difference with its interval, in bold where that leaves out 0."""
    if not values or not others:
        return ""
    found = paired(values, others)
    mean, half = statistics.mean(found), interval(found)
    text = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    return f"**{text}**" if abs(mean) > half else text


def pages(data_root: Path, output: Path) -> None:
    """Write the pages and figures of what there is."""
    numbers = Numbers(output)
    write(output / "comparison.md", _comparison(numbers))
    write(output / "mechanisms.md", _mechanisms(numbers))
    write(output / "settings.md", _settings(numbers))
    write(output / "diagnosis.md", _diagnosis(numbers))
    save_figure(_draw_comparison(numbers), output / "comparison.png")
    save_figure(_draw_mechanisms(numbers), output / "mechanisms.png")
    save_figure(_draw_sweeps(numbers), output / "sweeps.png")
    save_figure(_draw_masks(data_root), output / "masks.png")


# --- Tables ----------------------------------------------------------------------------------------------------------


def _variants() -> list[tuple[str, str]]:
    """Pairs of model and score, of what is learned."""
    return [
        (method, score) for method in METHODS for score in (*LEARNED, *(WITH_UNKNOWN if method == "CLIP-OS" else ()))
    ]


def _comparison(numbers: Numbers) -> str:
    names = list(numbers.data)
    parts = ["# CoOp, LoCoOp and CLIP-OS", ABOUT, "![AUROC and ID accuracy](comparison.png)"]
    parts += [
        "## AUROC",
        "**Bold** is the score that a method comes with. *MCM with a constant* is *MCM with unknown* where the cosine "
        "with the unknown prompt is 0 for all images: the form of that score without what is learned. The unknown "
        f'prompt of *{ZERO_SHOT[1]}* is the word "{UNKNOWN_WORD}" after them.',
    ]
    header = ["model", "score", *(TITLES[name] for name in names), "mean", "mean − CoOp by MCM"]
    for shots in SHOTS:
        rows = []
        coop = numbers.over_sets("comparison", "CoOp", shots, "mcm")
        listed = [
            (model, score, 0)
            for model in ZERO_SHOT
            for score in (*LEARNED, *(WITH_UNKNOWN[:2] if model == ZERO_SHOT[1] else ()))
        ]
        for model, score, count in [*listed, *((model, score, shots) for model, score in _variants())]:
            cells = [mean_text(numbers.values(name, "comparison", model, count, score)) for name in names]
            mean = numbers.over_sets("comparison", model, count, score)
            own = OWN.get(model) == score
            title = f"**{SCORES[score]}**" if own else SCORES[score]
            rows.append([model, title, *cells, mean_text(mean), difference_text(mean, coop)])
        parts += [f"### Images of each class: {shots}", table(header, rows)]
    parts += ["## Which is above which", "AUROC, paired differences; bold where the interval leaves out 0."]
    pairs = [
        (("CLIP-OS", "mcm_unknown"), ("LoCoOp", "gl_mcm")),
        (("CLIP-OS", "mcm_unknown"), ("CoOp", "mcm")),
        (("LoCoOp", "gl_mcm"), ("CoOp", "mcm")),
        *(((one, score), ("CoOp", score)) for score in SHOWN for one in ("LoCoOp", "CLIP-OS")),
        (("CLIP-OS", "mcm_unknown"), ("CoOp", "mcm_constant")),
        (("CLIP-OS", "mcm_unknown"), (ZERO_SHOT[1], "mcm_unknown")),
        (("CLIP-OS", "unknown"), (ZERO_SHOT[1], "unknown")),
        (("CLIP-OS", "mcm_unknown"), ("CoOp", "max_logit")),
        (("CLIP-OS", "mcm_unknown"), ("zero-shot", "max_logit")),
        (("CLIP-OS", "unknown"), ("CoOp", "max_logit")),
        (("CLIP-OS", "gl_mcm_unknown"), ("CoOp", "gl_mcm")),
    ]
    rows = []
    for first, second in pairs:
        for shots in SHOTS:
            sides = [(model, 0 if model in ZERO_SHOT else shots, score) for model, score in (first, second)]
            cells = [difference_text(*(numbers.values(name, "comparison", *side) for side in sides)) for name in names]
            means = [numbers.over_sets("comparison", *side) for side in sides]
            title = " − ".join(f"{model} by {SCORES[score]}" for model, score in (first, second))
            rows.append([title if shots == 1 else "", str(shots), *cells, difference_text(*means)])
    parts.append(table(["difference", "shots", *(TITLES[name] for name in names), "mean"], rows))
    parts += ["## ID accuracy", _accuracy(numbers), "### Differences", _accuracy_differences(numbers)]
    parts += ["## FPR95", _fpr(numbers), "## One by one", "AUROC by OOD set, 1 image of each class."]
    for name in names:
        groups = list(numbers.data[name]["facts"]["OOD images"])
        rows = [
            [
                model,
                SCORES[score],
                *(mean_text(_by_group(numbers, name, model, count, score, group)) for group in groups),
            ]
            for model, score, count in [
                *(("zero-shot", score, 0) for score in LEARNED),
                *((model, score, 1) for model, score in _variants()),
            ]
        ]
        facts = numbers.data[name]["facts"]
        counts = ", ".join(f"{count} {group}" for group, count in facts["OOD images"].items())
        parts += [
            f"### {TITLES[name]}",
            f"{facts['labels']} labels, {facts['ID images']} ID images, OOD: {counts}; {len(facts['seeds'])} seeds; "
            f'first words "{facts["first words"]}".',
            table(["model", "score", *groups], rows),
        ]
    return "\n\n".join(parts) + "\n"


def _by_group(numbers: Numbers, name: str, model: str, shots: int, score: str, group: str) -> list[float]:
    return numbers.values(name, "comparison", model, shots, score, group=group)


def _accuracy(numbers: Numbers) -> str:
    rows = []
    listed = [(model, 0, "accuracy") for model in ZERO_SHOT]
    for method in METHODS:
        listed += [(method, shots, "accuracy") for shots in SHOTS]
    listed += [("CLIP-OS", shots, "accuracy_with_unknown") for shots in SHOTS]
    for model, shots, metric in listed:
        title = f"{model}, unknown among the classes" if metric == "accuracy_with_unknown" else model
        cells = [mean_text(numbers.values(name, "comparison", model, shots, "", metric)) for name in numbers.data]
        mean = mean_text(numbers.over_sets("comparison", model, shots, "", metric))
        rows.append([title, str(shots or ""), *cells, mean])
    return table(["model", "shots", *(TITLES[name] for name in numbers.data), "mean"], rows)


def _accuracy_differences(numbers: Numbers) -> str:
    rows = []
    for first, second in (("LoCoOp", "CoOp"), ("CLIP-OS", "CoOp"), ("CLIP-OS", "LoCoOp"), ("CLIP-OS", "zero-shot")):
        for shots in SHOTS:
            sides = [(first, shots), (second, 0 if second == "zero-shot" else shots)]
            cells = [
                difference_text(*(numbers.values(name, "comparison", *side, "", "accuracy") for side in sides))
                for name in numbers.data
            ]
            means = [numbers.over_sets("comparison", *side, "", "accuracy") for side in sides]
            rows.append([f"{first} − {second}" if shots == 1 else "", str(shots), *cells, difference_text(*means)])
    return table(["difference", "shots", *(TITLES[name] for name in numbers.data), "mean"], rows)


def _fpr(numbers: Numbers) -> str:
    rows = []
    listed = [("zero-shot", score, 0) for score in SHOWN]
    for model, score in [*OWN.items(), *((method, "max_logit") for method in METHODS), ("CLIP-OS", "unknown")]:
        listed += [(model, score, shots) for shots in SHOTS]
    for model, score, shots in listed:
        cells = [mean_text(numbers.values(name, "comparison", model, shots, score, "fpr95")) for name in numbers.data]
        mean = mean_text(numbers.over_sets("comparison", model, shots, score, "fpr95"))
        rows.append([model, SCORES[score], str(shots or ""), *cells, mean])
    return table(["model", "score", "shots", *(TITLES[name] for name in numbers.data), "mean"], rows)


def _of_first_seeds(
    numbers: Numbers, name: str, shots: int, score: str, count: int, metric: str = "auroc"
) -> list[float]:
    """CLIP-OS as in the comparison, of those seeds that a smaller question has."""
    return numbers.values(name, "comparison", "CLIP-OS", shots, score, metric)[:count]


def _mechanisms(numbers: Numbers) -> str:
    parts = ["# CLIP-OS without each of its mechanisms", ABOUT, "![Differences to CLIP-OS](mechanisms.png)"]
    parts.append(
        "Differences to CLIP-OS as it is in the comparison, of the same five seeds; bold where the interval leaves "
        "out 0. *Global embeddings mixed* takes embeddings of whole images in place of the ID-relevant features; *the "
        "drawing itself* is every patch of which a pixel is not white."
    )
    for score in ("mcm_unknown", "unknown", "accuracy"):
        title = "ID accuracy" if score == "accuracy" else f"AUROC by {SCORES[score]}"
        metric = "accuracy" if score == "accuracy" else "auroc"
        for shots in (1, 4):
            rows = []
            models = list(
                dict.fromkeys(model for name in numbers.data for model in numbers.models(name, "mechanisms"))
            )
            bases = {name: _of_first_seeds(numbers, name, shots, score, 5, metric) for name in numbers.data}
            rows.append(["CLIP-OS", *(mean_text(base) for base in bases.values()), _mean_over(list(bases.values()))])
            for model in models:
                found = {
                    name: numbers.values(name, "mechanisms", model, shots, score, metric) for name in numbers.data
                }
                cells = [difference_text(values, bases[name]) for name, values in found.items()]
                mean = ""
                if all(found.values()):
                    mean = difference_text(
                        [statistics.mean(values) for values in zip(*found.values(), strict=True)],
                        [statistics.mean(values) for values in zip(*bases.values(), strict=True)],
                    )
                rows.append([model, *cells, mean])
            parts += [
                f"## {title}, images of each class: {shots}",
                table(["", *(TITLES[name] for name in numbers.data), "mean"], rows),
            ]
    if not _swept_sets(numbers):
        return "\n\n".join(parts) + "\n"
    parts += ["## β and α", "AUROC, 1 image of each class, five seeds.", "![Sweeps](sweeps.png)"]
    for question, base in (("beta", BETA), ("alpha", ALPHA)):
        rows = []
        for value, measured in _swept(numbers, question, base, ("mcm_unknown", "unknown")):
            rows.append([f"{value:g}", *(mean_text(cell) for cell in measured)])
        header = [
            f"{TITLES[name]}, {SCORES[score]}" for name in _swept_sets(numbers) for score in ("mcm_unknown", "unknown")
        ]
        parts.append(table(["β" if question == "beta" else "α", *header], rows))
    return "\n\n".join(parts) + "\n"


def _mean_over(values: Sequence[Sequence[float]]) -> str:
    return mean_text([statistics.mean(one) for one in zip(*values, strict=True)]) if all(values) else ""


def _swept_sets(numbers: Numbers) -> list[str]:
    return [name for name in numbers.data if numbers.models(name, "beta")]


def _swept(
    numbers: Numbers, question: str, base: float, scores: Sequence[str]
) -> list[tuple[float, list[list[float]]]]:
    """By value, the numbers of each data set and score, with those of the comparison in their place."""
    names = _swept_sets(numbers)
    swept = {float(model) for name in names for model in numbers.models(name, question)}
    result = []
    for value in sorted(swept | {base}):
        cells = []
        for name in names:
            for score in scores:
                if value == base:
                    cells.append(_of_first_seeds(numbers, name, 1, score, 5))
                else:
                    cells.append(numbers.values(name, question, f"{value:g}", 1, score))
        result.append((value, cells))
    return result


def _settings(numbers: Numbers) -> str:
    parts = ["# Other settings, and other shots", ABOUT]
    if "emoji" not in numbers.data:
        return "\n\n".join(parts) + "\n"
    parts += [
        f"Drawings, 1 image of each class. Differences to *{ZERO_SHOT[1]}*, whose numbers are in the last row; bold "
        "where the interval leaves out 0.",
        "## Learning rate and first words",
        "Three seeds. The first three rows are the settings of the papers, 50 epochs of SGD at 0.002 from 16 random "
        "tokens; the last three that learned are those of the comparison.",
    ]
    header = ["ID accuracy", *(SCORES[score] for score in (*SHOWN, "mcm_unknown"))]
    rows = [[model, *_against_words(numbers, "settings", model, 3)] for model in numbers.models("emoji", "settings")]
    rows += [[f"{model}, 0.05, words", *_against_words(numbers, "comparison", model, 3)] for model in METHODS]
    rows.append([ZERO_SHOT[1], *_against_words(numbers, "comparison", "", 3)])
    parts += [
        table(["model, learning rate, first words", *header], rows),
        "## The style of the shots",
        "Five seeds: shots in styles that the model was trained on, where the comparison has styles that it never "
        "saw. The test style, Twemoji, is another one that it never saw.",
    ]
    rows = []
    for model in METHODS:
        rows.append([f"{model}, styles of the training", *_against_words(numbers, "styles", model, 5)])
        rows.append([f"{model}, unseen styles", *_against_words(numbers, "comparison", model, 5)])
    rows.append([ZERO_SHOT[1], *_against_words(numbers, "comparison", "", 5)])
    parts.append(table(["model, shots", *header], rows))
    shares = numbers.data["emoji"]["facts"]["shots in seen styles"]
    listed = ", ".join(f"{share:.0f} % with {count}" for count, share in shares.items())
    parts.append(
        "There are three unseen styles beside Twemoji, some of which lack a concept. So some shots of the comparison "
        f"are in styles of the training after all: {listed} images of each class."
    )
    return "\n\n".join(parts) + "\n"


def _against_words(numbers: Numbers, question: str, model: str, count: int) -> list[str]:
    """Differences to prompts of the first words, of the first seeds; of no model, the numbers of these prompts."""
    cells = []
    for score in ("", *SHOWN, "mcm_unknown"):
        metric = "auroc" if score else "accuracy"
        base = numbers.values("emoji", "comparison", ZERO_SHOT[1], 0, score, metric)[:count]
        found = numbers.values("emoji", question, model, 1, score, metric)[:count] if model else []
        cells.append(difference_text(found, base) if model else mean_text(base))
    return cells


def _diagnosis(numbers: Numbers) -> str:
    parts = [
        "# What outliers, masks and the unknown prompt are like",
        ABOUT,
        "CLIP-OS with 1 image of each class. *Relevant* is the mean of the patches that the mask selects. AUROC is "
        "that of ID images against the set, where a higher cosine counts as more OOD.",
        "![Maps and masks](masks.png)",
        "Maps of the class of each image, blue low and yellow high, and what masks select; what they do not is grey. "
        "*Relative* is the map minus its mean over the labels, of which there are four of drawings, ten of clothes. "
        "The drawings are Twemoji (CC BY 4.0), the photos CC0.",
    ]
    questions: Mapping[str, tuple[str, str]] = {
        "unknown": ("cosine with the unknown prompt, learned", "{:.2f}"),
        "unknown before": ("cosine with the unknown prompt, before it learned", "{:.2f}"),
        "best label": ("cosine with the nearest label", "{:.2f}"),
        "nearest outlier": ("cosine with the nearest outlier", "{:.2f}"),
        "like outliers": ("AUROC of the cosine with the nearest outlier", "{:.1f}"),
        "like unknown": ("AUROC of the cosine with the unknown prompt", "{:.1f}"),
        "different classes": ("cosine of images of different classes", "{:.2f}"),
        "recognised": ("shots whose nearest label is their own, %", "{:.1f}"),
    }
    for name, found in numbers.data.items():
        diagnoses = found["diagnoses"]
        if not diagnoses:
            continue
        columns = list(diagnoses[0]["unknown"])
        rows = []
        for question, (title, form) in questions.items():
            cells = []
            for column in columns:
                place = PARTS.get(column, column) if question in ("different classes", "recognised") else column
                values = [one[question][place] for one in diagnoses if place in one[question]]
                cells.append(form.format(statistics.mean(values)) if values else "")
            rows.append([title, *cells])
        parts += [f"## {TITLES[name]}", table(["mean over seeds", *columns], rows)]
        selected = statistics.mean(one["selected"] for one in diagnoses)
        parts.append(f"Masks select {selected:.0f} % of the patches.")
        if "drawing" in diagnoses[0]:
            rows = [[what, mean_text([one["drawing"][what] for one in diagnoses])] for what in diagnoses[0]["drawing"]]
            parts += [
                "Patches of which a pixel is not white, in percent: their share of those that a mask selects, and the "
                "AUROC by which a map tells them from the others of the same drawing.",
                table(["patches of the drawing", "%"], rows),
            ]
    return "\n\n".join(parts) + "\n"


# --- Figures ---------------------------------------------------------------------------------------------------------

LINES = (
    ("CoOp", "mcm", COLORS[0]),
    ("LoCoOp", "gl_mcm", COLORS[1]),
    ("CLIP-OS", "mcm_unknown", COLORS[2]),
    ("CoOp", "max_logit", COLORS[5]),
)


def _draw_comparison(numbers: Numbers) -> Any:
    names = list(numbers.data)
    panels: list[tuple[str, Callable[..., list[float]]]] = [
        (TITLES[name], lambda *given, name=name: numbers.values(name, *given)) for name in names
    ]
    panels.append(("mean", numbers.over_sets))
    figure, axes = make_figure(2 * len(panels), len(panels), (2.4, 2.5))
    handles: dict[str, Any] = {}
    for column, (title, values) in enumerate(panels):
        upper, lower = axes[column], axes[len(panels) + column]
        for index, (model, score, color) in enumerate(LINES):
            label = f"{model}, {SCORES[score]}"
            points = [values("comparison", model, shots, score) for shots in SHOTS]
            handles[label] = _points(upper, points, index, color)
            if index < len(METHODS):
                _points(lower, [values("comparison", model, shots, "", "accuracy") for shots in SHOTS], index, color)
        for score, style in (("mcm", (0, (1, 2))), ("max_logit", (0, (5, 3)))):
            level = statistics.mean(values("comparison", "zero-shot", 0, score))
            handles[f"zero-shot, {SCORES[score]}"] = upper.axhline(level, color=INK, linewidth=1, linestyle=style)
        level = statistics.mean(values("comparison", "zero-shot", 0, "", "accuracy"))
        lower.axhline(level, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        upper.set_title(title, fontsize=9, color=INK, loc="left", fontweight="bold")
        for one in (upper, lower):
            one.set_xticks(range(len(SHOTS)), [str(shots) for shots in SHOTS])
        lower.set_xlabel("images of each class", fontsize=9, color=INK)
    axes[0].set_ylabel("AUROC, %", fontsize=9, color=INK)
    axes[len(panels)].set_ylabel("ID accuracy, %", fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _points(axes: Any, points: Sequence[Sequence[float]], index: int, color: str) -> Any:
    """Means with intervals, beside those of the others."""
    x = [place + 0.12 * (index - 1.5) for place in range(len(points))]
    means = [statistics.mean(values) for values in points]
    halves = [interval(values) for values in points]
    return axes.errorbar(
        x, means, yerr=halves, color=color, marker=MARKERS[index], markersize=5, linewidth=1, elinewidth=1.2, capsize=2
    )


def _draw_mechanisms(numbers: Numbers) -> Any:
    names = list(numbers.data)
    models = list(dict.fromkeys(model for name in names for model in numbers.models(name, "mechanisms")))
    figure, axes = make_figure(len(names), len(names), (2.7, 3.4))
    handles: dict[str, Any] = {}
    for column, (one, name) in enumerate(zip(axes, names, strict=True)):
        for index, shots in enumerate((1, 4)):
            base = _of_first_seeds(numbers, name, shots, "mcm_unknown", 5)
            for row, model in enumerate(models):
                values = numbers.values(name, "mechanisms", model, shots, "mcm_unknown")
                if not values:
                    continue
                found = paired(values, base)
                label = f"{shots} image{'s' if shots > 1 else ''} of each class"
                handles[label] = one.errorbar(
                    statistics.mean(found),
                    row + 0.2 * (index - 0.5),
                    xerr=interval(found),
                    color=COLORS[index],
                    marker=MARKERS[index],
                    markersize=4.5,
                    linewidth=0,
                    elinewidth=1.2,
                    capsize=2,
                )
        one.axvline(0, color=INK, linewidth=1)
        one.set_ylim(len(models) - 0.5, -0.5)
        one.set_yticks(range(len(models)), models if column == 0 else [""] * len(models))
        one.set_title(TITLES[name], fontsize=9, color=INK, loc="left", fontweight="bold")
        one.set_xlabel("AUROC − that of CLIP-OS", fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _draw_sweeps(numbers: Numbers) -> Any:
    names = _swept_sets(numbers)
    scores = ("mcm_unknown", "unknown")
    figure, axes = make_figure(2, 2, (3.6, 3.0))
    handles: dict[str, Any] = {}
    for one, question, base, title in zip(axes, ("beta", "alpha"), (BETA, ALPHA), ("β", "α"), strict=True):
        swept = _swept(numbers, question, base, scores)
        for place, (name, score) in enumerate((name, score) for name in names for score in scores):
            means = [statistics.mean(cells[place]) for _, cells in swept]
            halves = [interval(cells[place]) for _, cells in swept]
            x = [index + 0.07 * (place - 1.5) for index in range(len(swept))]
            handles[f"{TITLES[name]}, {SCORES[score]}"] = one.errorbar(
                x,
                means,
                yerr=halves,
                color=COLORS[place],
                marker=MARKERS[place],
                markersize=4.5,
                linewidth=1.2,
                elinewidth=1.2,
                capsize=2,
            )
        one.set_xticks(range(len(swept)), [f"{value:g}" for value, _ in swept])
        one.set_title(f"{title}; {base:g} in the comparison", fontsize=9, color=INK, loc="left", fontweight="bold")
        one.set_xlabel(title, fontsize=9, color=INK)
    axes[0].set_ylabel("AUROC, %", fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


# Drawings that the package has, and a photo of each of two kinds of clothes
DRAWINGS = {"1f335": "cactus", "1f431": "cat face", "1f528": "hammer", "1f968": "pretzel"}
PHOTOS = ("hat", "shoes")
UNSELECTED = (110, 122, 140)


def _draw_masks(root: Path) -> Any:
    encoder = DualEncoder.from_pretrained(device="cpu")
    bank = Bank(encoder)
    photos = [sorted((root / "data" / "clothing" / name).glob("*.jpg"))[0] for name in PHOTOS]
    files = [*(f"{SAMPLES}/{name}.jpg" for name in DRAWINGS), *photos]
    shown: list[tuple[Any, str, list[Any]]] = []
    for chosen, names in (
        (files[: len(DRAWINGS)], list(DRAWINGS.values())),
        (photos, sorted(folder.name for folder in (root / "data" / "clothing").iterdir() if folder.is_dir())),
    ):
        classes = list(range(len(DRAWINGS))) if chosen is not photos else [names.index(name) for name in PHOTOS]
        shots = bank.shots([(file, label, 0, False) for file, label in zip(chosen, classes, strict=True)])
        labels = Labels(encoder, names)
        found = maps(shots, labels, BETA)
        masks = [choose_patches(shots, labels, name, BETA) for name in ("discrepancy", "relative")]
        for row, file in enumerate(chosen):
            surgery, clip, relative = (_stretched(found[name][row]) for name in ("surgery", "clip", "relative"))
            columns = [surgery, clip, surgery - clip, masks[0], relative, masks[1]]
            cells = [one if one.ndim == 1 else one[row] for one in columns if one is not None]
            shown.append((file, names[classes[row]], cells))
    titles = ["", "surgery", "CLIP", "surgery − CLIP", "mask of CLIP-OS", "surgery, relative", "mask of that"]
    figure, axes = make_figure(len(shown) * len(titles), len(titles), (1.35, 1.35))
    for row, (file, name, cells) in enumerate(shown):
        own = axes[row * len(titles) : (row + 1) * len(titles)]
        picture = _as_seen(encoder, file)
        own[0].imshow(picture)
        own[0].set_ylabel(name, fontsize=9, color=INK)
        for place, values in enumerate(cells):
            side = int(len(values) ** 0.5)
            grid = values.float().view(side, side).numpy()
            extent = (0, picture.shape[1], picture.shape[0], 0)
            if values.dtype == torch.bool:
                faded = 0.8 * np.array(UNSELECTED) + 0.2 * picture
                large = np.kron(grid, np.ones((picture.shape[0] // side, picture.shape[1] // side)))[..., None]
                own[place + 1].imshow(np.where(large > 0, picture, faded).astype(np.uint8))
            else:
                own[place + 1].imshow(grid, cmap="cividis", extent=extent)
        for column, one in enumerate(own):
            one.set_xticks([])
            one.set_yticks([])
            one.grid(visible=False)
            for spine in one.spines.values():
                spine.set_visible(True)
                spine.set_color(RULE)
            if row == 0:
                one.set_title(titles[column], fontsize=8, color=FADED)
    return figure


def _stretched(values: torch.Tensor) -> torch.Tensor:
    return (values - values.min()) / (values.max() - values.min())


def _as_seen(encoder: DualEncoder, file: Any) -> np.ndarray[Any, Any]:
    """The pixels that the model gets, as a picture."""
    processor = encoder.processor.image_processor
    pixels = prepare_image(load_image(file), processor)["pixel_values"][0]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    picture: np.ndarray[Any, Any] = (
        ((pixels * deviation + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    )
    return picture
