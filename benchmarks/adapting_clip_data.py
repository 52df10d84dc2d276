# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the parts of adapting_clip.py have in common: draws of ID and OOD images, results, tables and figures."""

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf import DualEncoder, OODDetector, PrecomputedEncoder, extract_features
from clipn_hf.evaluation.metrics import auroc, fpr_at_tpr
from clipn_hf.evaluation.results import Draws, percentile_interval, resample_metrics
from clipn_hf.evaluation.sets import LoadedSet, SuiteData, load_suite_data
from clipn_hf.files import atomic_path
from clipn_hf.methods import METHODS

RESAMPLES = 1000
REAL = Path("features", "clip_vitb32_openai_real.npz")
HALVES = 10
# What zero-shot scores are called in tables.
ZERO_SHOT = {"mcm": "MCM", "msp": "MSP", "max_logit": "MaxLogit", "energy": "Energy"}
# Okabe and Ito, as in the figures of evaluations.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#79828E")
MARKERS = "osD^vP*X"
INK, FADED, RULE = "#1A1F26", "#5A6472", "#D5D9DF"
CONVENTION = (
    "AUROC and FPR95 in percent. FPR95 is the share of OOD images accepted when 95 % of the ID images are kept (*ID "
    "positive*, exact rule). ± is one standard deviation over the draws, which share images; brackets are 95 % "
    "intervals: of the bootstrap over images where there is one draw, of Student's t over paired draws where a "
    "difference is given."
)


def say(text: str) -> None:
    """Print progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# --- Draws -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Draw:
    """ID images to fit on and to detect, and OOD images.

    Args:
        labels (`list[str]`): The labels.
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): The model, or its embeddings of texts.
        fit (`torch.Tensor` of shape `(images, dim)`): Embeddings to fit on, of unit norm.
        fit_labels (`torch.Tensor` of shape `(images,)`): Positions in `labels`.
        id (`torch.Tensor` of shape `(images, dim)`): Embeddings of ID images.
        id_labels (`torch.Tensor` of shape `(images,)`): Positions in `labels`.
        ood (`dict[str, torch.Tensor]`): Embeddings of OOD images by group or set.
        images (`dict[str, Sequence]`): The images of `"fit"`, `"id"` and each OOD set, where there are any.
    """

    labels: list[str]
    encoder: DualEncoder | PrecomputedEncoder
    fit: Tensor
    fit_labels: Tensor
    id: Tensor
    id_labels: Tensor
    ood: dict[str, Tensor]
    images: dict[str, Sequence[Any]] = field(default_factory=dict)


def five_classes(root: Path) -> Iterator[Draw]:
    """Five classes of CIFAR-10 against the other five and product photos, ten draws, real embeddings."""
    return _draws_of_features("cifar10-features-split", root)


def product_photos(root: Path) -> Iterator[Draw]:
    """Three kinds of product photos against the others and CIFAR-10, ten draws, real embeddings."""
    return _draws_of_features("product-photos-features", root)


def _draws_of_features(suite: str, root: Path) -> Iterator[Draw]:
    first = load_suite_data(suite, data_root=root)
    for seed in first.suite.seeds:
        yield _as_draw(load_suite_data(suite, data_root=root, seed=seed), None)


def random_halves(root: Path) -> Iterator[Draw]:
    """CIFAR-10 against product photos: ten splits at random, half of each class to fit on, real embeddings."""
    data = load_suite_data("cifar10-features", data_root=root)
    whole, labels = _unit(data.id.embeddings), torch.tensor(data.id.labels)
    for seed in range(HALVES):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        is_fit = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            members = order[labels[order] == label]
            is_fit[members[: len(members) // 2]] = True
        yield Draw(
            data.labels,
            _text_encoder(data),
            whole[is_fit],
            labels[is_fit],
            whole[~is_fit],
            labels[~is_fit],
            {"far": _unit(data.ood[0].embeddings)},
        )


def emoji(root: Path) -> Iterator[Draw]:
    """Fifty concepts of Twemoji against others, near and far, ten draws, clipn-tiny."""
    return _draws_of_images("emoji", root, DualEncoder.from_pretrained())


def cifar10(root: Path, encoder: DualEncoder | None = None) -> Iterator[Draw]:
    """CIFAR-10 against CIFAR-100, MNIST, textures and scenes, one draw, clipn-tiny unless another is given."""
    return _draws_of_images("cifar10", root, encoder or DualEncoder.from_pretrained())


def tiny_imagenet(root: Path, encoder: DualEncoder | None = None) -> Iterator[Draw]:
    """A hundred classes of Tiny ImageNet against the other hundred, one draw, clipn-tiny unless another is given."""
    return _draws_of_images("tiny-imagenet", root, encoder or DualEncoder.from_pretrained())


def _draws_of_images(suite: str, root: Path, encoder: DualEncoder) -> Iterator[Draw]:
    first = load_suite_data(suite, data_root=root)
    for seed in first.suite.seeds:
        yield _as_draw(load_suite_data(suite, data_root=root, seed=seed), encoder)


def _as_draw(data: SuiteData, encoder: DualEncoder | None) -> Draw:
    assert data.fit is not None and data.fit.labels is not None and data.id.labels is not None

    def embed(one: LoadedSet) -> Tensor:
        if encoder is None:
            return _unit(one.embeddings)
        features = extract_features(one.images, encoder, progress=False)
        assert not features.skipped, features.skipped
        return _unit(features.embeddings)

    # Sets of one group have names of their own where there are several.
    groups = [one.group for one in data.ood]
    names = [one.group if groups.count(one.group) == 1 else one.name for one in data.ood]
    images: dict[str, Sequence[Any]] = {}
    if encoder is not None:
        sets = {"fit": data.fit, "id": data.id, **dict(zip(names, data.ood, strict=True))}
        images = {name: one.images for name, one in sets.items() if one.images is not None}
    return Draw(
        data.labels,
        encoder or _text_encoder(data),
        embed(data.fit),
        torch.tensor(data.fit.labels),
        embed(data.id),
        torch.tensor(data.id.labels),
        {name: embed(one) for name, one in zip(names, data.ood, strict=True)},
        images,
    )


def _text_encoder(data: SuiteData) -> PrecomputedEncoder:
    features = data.suite.text_features
    assert features is not None and data.text_bank is not None
    return PrecomputedEncoder(data.text_bank, features.model, ["a {}"], features.logit_scale)


def _unit(embeddings: Any) -> Tensor:
    return normalize(torch.as_tensor(embeddings).float(), dim=1)


def fitted(draw: Draw, method: str, **settings: Any) -> OODDetector:
    """Make a detector, fitted if the method has to be, with labels where it needs them."""
    detector = OODDetector(draw.encoder, draw.labels, method, **settings)
    needs = METHODS[method].needs
    if "training" in needs:
        detector.fit(draw.fit, draw.fit_labels if "training_labels" in needs else None)
    return detector


# --- Results ---------------------------------------------------------------------------------------------------------


class Results:
    """AUROC and FPR95 in percent by question, variant and group of OOD images, a value for each draw.

    Where there is one draw, AUROC is also known in resamples, the same images for all variants.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        self.facts: dict[str, Any] = {}
        self._resampled: dict[tuple[str, str, str], np.ndarray] = {}
        self._draws = Draws()

    def add(
        self,
        question: str,
        variant: str,
        id_scores: Tensor,
        ood_scores: Mapping[str, Tensor],
        resample: bool = False,
        **others: float,
    ) -> None:
        """Measure one draw; `others` are further numbers in percent, such as an accuracy."""
        for group, scores in ood_scores.items():
            cell = self.values.setdefault((question, variant, group), {})
            values = {
                "auroc": 100 * auroc(id_scores, scores),
                "fpr95": 100 * fpr_at_tpr(id_scores, scores),
                **others,
            }
            for name, value in values.items():
                cell.setdefault(name, []).append(round(value, 3))
            if resample:
                resampled = resample_metrics(
                    ["auroc"],
                    id_scores.numpy(),
                    scores.numpy(),
                    None,
                    None,
                    resamples=RESAMPLES,
                    seed=0,
                    draws=self._draws,
                    stream=1 + list(ood_scores).index(group),
                )["auroc"]
                self._resampled[question, variant, group] = 100 * resampled
                cell["interval"] = [round(end, 3) for end in percentile_interval(100 * resampled)]

    def judge(self, question: str, variant: str, draw: Draw, detector: OODDetector, pixels: bool = False) -> None:
        """Measure a detector on a draw, by embeddings or by the images themselves."""
        images = draw.images if pixels else {"id": draw.id, **draw.ood}
        resample = not isinstance(draw.encoder, PrecomputedEncoder) and len(draw.id) >= 1000
        self.add(
            question,
            variant,
            detector.score(images["id"]),
            {name: detector.score(images[name]) for name in draw.ood},
            resample,
        )

    def variants(self, question: str) -> list[str]:
        """The variants of a question, in the order in which they were measured."""
        return list(dict.fromkeys(variant for asked, variant, _ in self.values if asked == question))

    def groups(self, question: str) -> list[str]:
        """The groups of OOD images of a question."""
        return list(dict.fromkeys(group for asked, _, group in self.values if asked == question))

    def table(self, question: str, first: str, titles: Mapping[str, str] | None = None) -> str:
        """One row per variant: AUROC and FPR95 of each group."""
        titles = titles or {group: group for group in self.groups(question)}
        header = [first] + [f"{title}, {metric}" for title in titles.values() for metric in ("AUROC ↑", "FPR95 ↓")]
        rows = []
        for variant in self.variants(question):
            cells = [self.values.get((question, variant, group)) for group in titles]
            rows.append(
                [variant] + [spread(cell, metric) if cell else "" for cell in cells for metric in ("auroc", "fpr95")]
            )
        return table(header, rows)

    def differences(self, question: str, base: str, titles: Mapping[str, str] | None = None) -> str:
        """By how much the AUROC of a variant lies above that of each other one."""
        titles = titles or {group: group for group in self.groups(question)}
        rows = [
            [f"{base} − {variant}", *(self.difference(question, base, variant, group) for group in titles)]
            for variant in self.variants(question)
            if variant != base
        ]
        return table(["difference", *titles.values()], rows)

    def difference(self, question: str, base: str, variant: str, group: str) -> str:
        """Difference in AUROC with its interval; nothing where one of the two was not measured."""
        cells = [self.values.get((question, one, group)) for one in (base, variant)]
        if not all(cells):
            return ""
        own, other = (cell["auroc"] for cell in cells if cell)
        if len(own) != len(other):
            return ""
        if len(own) > 1:
            return paired([a - b for a, b in zip(own, other, strict=True)])
        resampled = [self._resampled.get((question, one, group)) for one in (base, variant)]
        if resampled[0] is None or resampled[1] is None:
            return f"{own[0] - other[0]:+.1f}"
        low, high = percentile_interval(resampled[0] - resampled[1])
        return f"{own[0] - other[0]:+.1f} [{low:+.1f}, {high:+.1f}]"

    def save(self, path: Path) -> None:
        """Write all values and facts."""
        rows = ",\n".join(json.dumps([*key, cell], ensure_ascii=False) for key, cell in self.values.items())
        about = json.dumps(self.facts, ensure_ascii=False)
        write(path, f'{{"facts": {about},\n"results": [\n{rows}\n]}}\n')


def spread(cell: Mapping[str, list[float]], metric: str) -> str:
    """Mean and standard deviation of several draws, or the value and its interval of one."""
    values = cell[metric]
    if len(values) > 1:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    if metric in ("auroc", "accuracy") and "interval" in cell:
        return f"{values[0]:.1f} [{cell['interval'][0]:.1f}, {cell['interval'][1]:.1f}]"
    return f"{values[0]:.1f}"


def paired(differences: Sequence[float]) -> str:
    """Mean of differences of the same draws with the 95 % interval of Student's t."""
    count = len(differences)
    half = student.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    mean = statistics.mean(differences)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write(path: Path, text: str) -> None:
    """Write a page."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


# --- Figures ---------------------------------------------------------------------------------------------------------


def make_figure(
    panels: int, columns: int | None = None, size: tuple[float, float] = (3.4, 3.0)
) -> tuple[Any, list[Any]]:
    """A figure with so many axes. It needs the extra `[benchmarks]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns or panels
    rows = -(-panels // columns)
    shape = size[0] * columns, size[1] * rows + 0.4
    figure = Figure(figsize=shape, dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()[:panels]
    for axes in all_axes:
        axes.tick_params(labelsize=8, colors=FADED)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(RULE)
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, all_axes


def draw_lines(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Sequence[float]]]]],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    columns: int | None = None,
) -> Any:
    """Lines over a setting, one panel per data set, with bands of one standard deviation over the draws."""
    figure, all_axes = make_figure(len(panels), columns)
    handles: dict[str, Any] = {}
    order = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        for label, points in curves.items():
            index = order.index(label)
            x = [value for value, _ in points]
            mean = np.array([statistics.mean(values) for _, values in points])
            handles[label] = axes.plot(
                x, mean, color=COLORS[index], marker=MARKERS[index], markersize=4, linewidth=1.5
            )[0]
            if len(points[0][1]) > 1:
                deviation = np.array([statistics.stdev(values) for _, values in points])
                low, high = mean - deviation, np.minimum(mean + deviation, 100)
                axes.fill_between(x, low, high, color=COLORS[index], alpha=0.15, linewidth=0)
        for index, (label, value) in enumerate((levels or {}).get(title, {}).items()):
            handles[label] = axes.axhline(
                value, color=(FADED, INK)[index % 2], linewidth=1.1, linestyle=((0, (1, 2)), (0, (5, 3)))[index % 2]
            )
        if log:
            axes.set_xscale("log", base=2)
            ticks = sorted({value for points in curves.values() for value, _ in points})
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.set_title(title, fontsize=9, color=INK, loc="left", fontweight="bold")
        axes.set_xlabel(x_label, fontsize=9, color=INK)
    all_axes[0].set_ylabel(y_label, fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")
