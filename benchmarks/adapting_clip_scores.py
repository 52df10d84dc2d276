# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of adapting_clip.py: scores of image embeddings against each other and against zero-shot scores; settings."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from adapting_clip_data import (
    CONVENTION,
    ZERO_SHOT,
    Draw,
    Results,
    cifar10,
    draw_lines,
    emoji,
    fitted,
    five_classes,
    product_photos,
    random_halves,
    save_figure,
    say,
    spread,
    table,
    tiny_imagenet,
    write,
)

from clipn_hf.evaluation.metrics import id_accuracy
from clipn_hf.methods import METHODS

# All variants at their defaults, but for what the title says.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{title: (name, {}) for name, title in ZERO_SHOT.items()},
    "1-NN": ("nearest_neighbors", {}),
    "k-means, as many clusters as labels": ("kmeans", {}),
    "k-means, relative Mahalanobis": ("kmeans", {"distance": "relative_mahalanobis"}),
    "Mahalanobis": ("mahalanobis", {}),
    "relative Mahalanobis (RMD)": ("relative_mahalanobis", {}),
    "ReAct": ("react", {}),
    "ViM": ("vim", {}),
    "ODIN": ("odin", {}),
}
NEIGHBORS = (1, 2, 5, 10, 20, 50)
CLUSTERS = (1, 2, 5, 10, 20, 50, 100)
SHRINKAGES = (None, 0.0, 0.01, 0.1, 0.3, 0.6, 1.0)
PERCENTILES = (50.0, 80.0, 90.0, 95.0, 99.0, 100.0)
DIMENSIONS = (8, 16, 32, 64, 128, 256, 384)
# ODIN goes back through the model for every image and every draw, so that it gets a share of those.
ODIN_DRAWS, ODIN_IMAGES = 5, 200
MAGNITUDES = (0.0, 0.0014, 0.005, 0.02)

Draws = Callable[[Path], Iterator[Draw]]
DATA: Mapping[str, tuple[str, Draws, Mapping[str, str]]] = {
    "five": (
        "Five classes of CIFAR-10 against the other five, real embeddings of CLIP ViT-B/32, ten draws",
        five_classes,
        {"near": "other five classes", "far": "product photos"},
    ),
    "halves": (
        "CIFAR-10 against product photos, real embeddings, ten random halves",
        random_halves,
        {"far": "product photos"},
    ),
    "products": (
        "Three kinds of product photos, real embeddings, ten draws",
        product_photos,
        {"near": "other kinds", "far": "CIFAR-10"},
    ),
    "emoji": ("Emoji, clipn-tiny, ten draws", emoji, {"near": "near", "far": "far"}),
    "cifar10": (
        "CIFAR-10, clipn-tiny, one draw",
        cifar10,
        {"near": "CIFAR-100", "MNIST": "MNIST", "Textures": "textures", "Scenes": "scenes"},
    ),
    "tiny": ("Tiny ImageNet, clipn-tiny, one draw", tiny_imagenet, {"near": "other 100 classes"}),
}


def scores(root: Path, output: Path) -> None:
    """Compare all scores at their defaults."""
    results = Results()
    for name, (title, load, _) in DATA.items():
        say(title)
        for number, draw in enumerate(load(root)):
            _note_accuracy(results, name, draw)
            for variant, (method, settings) in VARIANTS.items():
                if method == "odin":
                    _judge_odin(results, name, number, draw)
                    continue
                if method == "vim":
                    settings = _vim_settings(draw)
                with warnings.catch_warnings():
                    # That covariances are shrunk is in the text.
                    warnings.simplefilter("ignore")
                    results.judge(name, variant, draw, fitted(draw, method, **settings))
    results.save(output / "scores.json")
    write(output / "scores.md", _page_of_scores(results))


def _vim_settings(draw: Draw) -> dict[str, Any]:
    """None, where the images span more than the principal space; half of them as dimensions, where they do not."""
    images, dim = draw.fit.shape
    return {} if images > dim // 2 + 1 else {"principal_dims": images // 2}


def _note_accuracy(results: Results, name: str, draw: Draw) -> None:
    detector = fitted(draw, "mcm")
    share = 100 * id_accuracy(detector.predict(draw.id).numpy(), draw.id_labels.numpy())
    nearest = (draw.id @ draw.fit.T).argmax(dim=1)
    by_neighbor = 100 * id_accuracy(draw.fit_labels[nearest].numpy(), draw.id_labels.numpy())
    facts = results.facts.setdefault(name, {"zero-shot": [], "1-NN": [], "fit": [], "id": [], "ood": {}})
    facts["zero-shot"].append(round(share, 3))
    facts["1-NN"].append(round(by_neighbor, 3))
    facts["fit"].append(len(draw.fit))
    facts["id"].append(len(draw.id))
    for group, images in draw.ood.items():
        facts["ood"].setdefault(group, []).append(len(images))


def _judge_odin(results: Results, name: str, number: int, draw: Draw) -> None:
    """ODIN by the length of its step, and other scores of the same images."""
    if not draw.images or number >= ODIN_DRAWS:
        return
    generator = torch.Generator().manual_seed(number)
    chosen = {
        group: torch.randperm(len(draw.images[group]), generator=generator)[:ODIN_IMAGES].tolist()
        for group in ("id", *draw.ood)
    }
    embeddings = {"id": draw.id, **draw.ood}
    question = f"{name}, ODIN"
    default = METHODS["odin"].settings["magnitude"]
    for magnitude in MAGNITUDES if name == "emoji" else (0.0, default):
        detector = fitted(draw, "odin", magnitude=magnitude)
        judged = {group: detector.score([draw.images[group][row] for row in rows]) for group, rows in chosen.items()}
        is_default = " (default)" if magnitude == default else ""
        results.add(question, f"ODIN, step {magnitude:g}{is_default}", judged.pop("id"), judged)
    for variant, method in (("MSP", "msp"), ("MCM", "mcm"), ("1-NN", "nearest_neighbors")):
        detector = fitted(draw, method)
        judged = {group: detector.score(embeddings[group][rows]) for group, rows in chosen.items()}
        results.add(question, variant, judged.pop("id"), judged)


def _page_of_scores(results: Results) -> str:
    lines = [
        "# Scores of image embeddings against zero-shot scores",
        "All methods at their defaults. 1-NN, k-means, ReAct and ViM are fitted on ID images without labels, the "
        "Mahalanobis distances with labels. Where images are fewer than dimensions, covariances are shrunk, as the "
        "library does by itself, and the principal space of ViM has half as many dimensions as there are images.",
        CONVENTION,
    ]
    for name, (title, _, groups) in DATA.items():
        facts = results.facts[name]
        zero_shot, neighbor = (spread({"accuracy": facts[key]}, "accuracy") for key in ("zero-shot", "1-NN"))
        counts = ", ".join(f"{_span(facts['ood'][group])} {group} OOD" for group in groups)
        lines += [
            f"## {title}",
            f"{_span(facts['fit'])} images to fit on, {_span(facts['id'])} ID, {counts}. ID accuracy: zero-shot "
            f"{zero_shot} %, label of the nearest neighbor {neighbor} %.",
            results.table(name, "method", groups),
            "Differences in AUROC:",
            results.differences(name, "1-NN", groups),
        ]
        question = f"{name}, ODIN"
        if results.variants(question):
            draws = len(results.values[question, "MSP", next(iter(groups))]["auroc"])
            lines += [
                f"ODIN, on {ODIN_IMAGES} images of each set at most, {draws} draw{'s' if draws > 1 else ''}. The step "
                "is in colours from 0 to 1; without one (0) ODIN is MSP at temperature 1000:",
                results.table(question, "method", groups),
            ]
    return "\n\n".join(lines) + "\n"


def _span(counts: list[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


# --- Settings --------------------------------------------------------------------------------------------------------

SETTINGS_ON = ("five", "products", "emoji")


def _settings(draw: Draw) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Question, variant, method and settings of what is varied."""
    dim = draw.fit.shape[1]
    for k in NEIGHBORS:
        for reduction in ("mean", "kth"):
            yield f"neighbors, {reduction}", f"{k}", "nearest_neighbors", {"k": k, "reduction": reduction}
    for distance in ("cosine", "mahalanobis", "relative_mahalanobis"):
        for clusters in CLUSTERS:
            # A single cluster is the Gaussian of all images, and leaves nothing to compare.
            if clusters <= len(draw.fit) // 3 and (clusters > 1 or distance != "relative_mahalanobis"):
                yield (
                    f"clusters, {distance}",
                    f"{clusters}",
                    "kmeans",
                    {"num_clusters": clusters, "distance": distance},
                )
    for method in ("mahalanobis", "relative_mahalanobis"):
        for tied in (False, True):
            for shrinkage in SHRINKAGES:
                variant = f"{'pooled' if tied else 'unweighted'}, {'automatic' if shrinkage is None else shrinkage}"
                yield f"covariance, {method}", variant, method, {"tied": tied, "shrinkage": shrinkage}
    for score in ("energy", "msp", "max_logit", "mcm"):
        for percentile in PERCENTILES:
            yield f"ReAct, {score}", f"{percentile:g}", "react", {"percentile": percentile, "score": score}
    for dimensions in DIMENSIONS:
        if dimensions < min(dim, len(draw.fit)):
            yield "ViM", f"{dimensions}", "vim", {"principal_dims": dimensions}
    for score in ("energy", "msp", "max_logit", "relative_mahalanobis", "perplexity"):
        yield "probe", score, "linear_probe", {"score": score}


def settings(root: Path, output: Path) -> None:
    """Vary one setting at a time."""
    results = Results()
    for name in SETTINGS_ON:
        title, load, _ = DATA[name]
        say(title)
        for draw in load(root):
            for question, variant, method, chosen in _settings(draw):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    detector = fitted(draw, method, **chosen)
                results.judge(f"{name}: {question}", variant, draw, detector)
    results.save(output / "settings.json")
    write(output / "settings.md", _page_of_settings(results))
    _draw_settings(results, output)


SETTING_TITLES = {
    "neighbors, mean": (
        "Nearest neighbors: mean of the k distances",
        "k",
    ),
    "neighbors, kth": ("Nearest neighbors: the k-th distance", "k"),
    "clusters, cosine": ("k-means: cosine with the nearest centroid", "clusters"),
    "clusters, mahalanobis": ("k-means: Mahalanobis distance to the nearest cluster", "clusters"),
    "clusters, relative_mahalanobis": ("k-means: relative Mahalanobis distance", "clusters"),
    "covariance, mahalanobis": ("Mahalanobis: covariance and shrinkage", "covariance, shrinkage"),
    "covariance, relative_mahalanobis": (
        "Relative Mahalanobis: covariance and shrinkage",
        "covariance, shrinkage",
    ),
    "ReAct, energy": ("ReAct: percentile, scored by energy", "percentile"),
    "ReAct, msp": ("ReAct: percentile, scored by MSP", "percentile"),
    "ReAct, max_logit": ("ReAct: percentile, scored by MaxLogit", "percentile"),
    "ReAct, mcm": ("ReAct: percentile, scored by MCM", "percentile"),
    "ViM": ("ViM: dimensions of the principal space", "dimensions"),
    "probe": ("Linear probe: score of its logits", "score"),
}


def _page_of_settings(results: Results) -> str:
    columns = {
        (name, group): f"{short}, {title}"
        for name, short in zip(SETTINGS_ON, ("CIFAR-10", "products", "emoji"), strict=True)
        for group, title in DATA[name][2].items()
    }
    lines = [
        "# Settings",
        "One setting at a time, the others at their defaults. CIFAR-10: five classes, real embeddings of CLIP "
        "ViT-B/32, some 125 images to fit on. Products: three kinds, real embeddings, 173 to 792 images to fit on. "
        "Emoji: clipn-tiny, some 400 drawings of 50 concepts. *These are the images that are judged*: what is best "
        "here was chosen on test data, and defaults stay those of the papers. AUROC in percent, ± one standard "
        "deviation over ten draws. Settings that the images do not allow are left out.",
    ]
    for question, (title, first) in SETTING_TITLES.items():
        variants = dict.fromkeys(
            variant for name in SETTINGS_ON for variant in results.variants(f"{name}: {question}")
        )
        rows = []
        for variant in variants:
            cells = [results.values.get((f"{name}: {question}", variant, group)) for name, group in columns]
            rows.append([variant, *(_auroc(cell) for cell in cells)])
        lines += [f"## {title}", table([first, *columns.values()], rows)]
    return "\n\n".join(lines) + "\n"


def _auroc(cell: Mapping[str, list[float]] | None) -> str:
    # Means over fewer draws than others would not compare.
    return spread(cell, "auroc") if cell and len(cell["auroc"]) == 10 else ""


def _draw_settings(results: Results, output: Path) -> None:
    places = {
        "CIFAR-10, other five classes": ("five", "near"),
        "Products, other kinds": ("products", "near"),
        "Emoji, near": ("emoji", "near"),
    }

    def curve(name: str, group: str, question: str) -> list[tuple[float, list[float]]]:
        asked = f"{name}: {question}"
        cells = {variant: results.values.get((asked, variant, group)) for variant in results.variants(asked)}
        return [(float(x), cell["auroc"]) for x, cell in cells.items() if cell and len(cell["auroc"]) == 10]

    panels = {
        title: {
            "nearest neighbors, mean": curve(name, group, "neighbors, mean"),
            "nearest neighbors, k-th": curve(name, group, "neighbors, kth"),
            "k-means, cosine": curve(name, group, "clusters, cosine"),
            "k-means, relative Mahalanobis": curve(name, group, "clusters, relative_mahalanobis"),
        }
        for title, (name, group) in places.items()
    }
    save_figure(draw_lines(panels, "neighbors or clusters", "AUROC, %", log=True), output / "settings.png")
