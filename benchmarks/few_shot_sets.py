# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The images of few_shot.py: draws of a few shots, ID and OOD images, and what the image encoder makes of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipn_hf import DualEncoder
from clipn_hf.encoders import image_and_local_features
from clipn_hf.evaluation.sets import LoadedSet, load_suite_data
from clipn_hf.local_features import LocalPath
from clipn_hf.training import sample_shots

SEEDS = range(10)
MAX_SHOTS = 4
TINY_CLASSES, CLOTHING_CLASSES = 50, 5
BATCH = 128
# The order in which drawings of a concept become shots: styles that training never saw come first.
UNSEEN_STYLES = ("OpenMoji", "OpenMoji black", "Emoji One 1.5")


@dataclass(frozen=True, eq=False)
class Shots:
    """A few images of each class, and their features.

    Args:
        images (`list`): What can be loaded.
        labels (`torch.Tensor` of shape `(images,)`): Their classes.
        rank (`torch.Tensor` of shape `(images,)`): Which of its class an image is, from 0; k shots are those below k.
        seen (`torch.Tensor` of shape `(images,)`): Whether it is of a style that the model was pre-trained on.
        embeddings (`torch.Tensor` of shape `(images, dim)`): Of unit norm.
        local (`dict[str, torch.Tensor]`): By path, patches `(images, patches, dim)` as the model gives them.
    """

    images: list[Any]
    labels: Tensor
    rank: Tensor
    seen: Tensor
    embeddings: Tensor
    local: dict[LocalPath, Tensor]

    def take(self, count: int) -> "Shots":
        """The first `count` of each class."""
        rows = (self.rank < count).nonzero()[:, 0]
        return Shots(
            [self.images[row] for row in rows.tolist()],
            self.labels[rows],
            self.rank[rows],
            self.seen[rows],
            self.embeddings[rows],
            {path: patches[rows] for path, patches in self.local.items()},
        )


@dataclass(frozen=True, eq=False)
class Features:
    """Features of images: embeddings `(images, dim)` and patches on the value path `(images, patches, dim)`, of unit
    norm, the latter in float16."""

    embeddings: Tensor
    patches: Tensor

    def take(self, rows: Sequence[int]) -> "Features":
        """Those of some images."""
        return Features(self.embeddings[rows], self.patches[rows])


@dataclass(frozen=True, eq=False)
class Draw:
    """What one seed draws.

    Args:
        seed (`int`): The seed.
        labels (`list[str]`): The labels.
        shots ([`Shots`]): Up to `MAX_SHOTS` of each class.
        id ([`Features`]): Of ID images.
        id_labels (`torch.Tensor` of shape `(images,)`): Their classes.
        ood (`dict[str, Features]`): Of OOD images, by set.
        other_shots ([`Shots`], *optional*): The same number of shots in styles that the model was pre-trained on.
    """

    seed: int
    labels: list[str]
    shots: Shots
    id: Features
    id_labels: Tensor
    ood: dict[str, Features]
    other_shots: Shots | None = None


class Bank:
    """Computes the features of each image of a set once.

    Args:
        encoder ([`DualEncoder`]): The model.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self._stacked: dict[tuple[str, ...], Features] = {}

    def features(self, images: Sequence[Any], names: Sequence[str], group: str) -> Features:
        """The features of images, which have different names in their group."""
        key = group, *names
        if key not in self._stacked:
            self._stacked[key] = self._stack(images, names, self._known.setdefault(group, {}))
        return self._stacked[key]

    def _stack(self, images: Sequence[Any], names: Sequence[str], known: dict[str, tuple[Tensor, Tensor]]) -> Features:
        new = [row for row, name in enumerate(names) if name not in known]
        for start in range(0, len(new), BATCH):
            rows = new[start : start + BATCH]
            inputs = self.encoder.prepare_images([images[row] for row in rows])
            for row, *found in zip(rows, *self.encoder.image_and_local_embeddings(inputs), strict=True):
                known[names[row]] = found[0], found[1].half()
        found = [known[name] for name in names]
        return Features(torch.stack([one for one, _ in found]), torch.stack([patches for _, patches in found]))

    def of(self, loaded: LoadedSet) -> Features:
        """The features of a set of a suite."""
        assert loaded.images is not None
        return self.features(loaded.images, loaded.names, f"{loaded.group}, {loaded.name}")

    @torch.no_grad()
    def shots(self, chosen: Sequence[tuple[Any, int, int, bool]]) -> Shots:
        """Shots of images, their classes, ranks and whether their style is known, with features of all paths."""
        images = [image for image, *_ in chosen]
        embeddings: list[Tensor] = []
        local: dict[LocalPath, list[Tensor]] = {"value": [], "surgery": [], "clip": []}
        for start in range(0, len(images), BATCH):
            pixels = self.encoder.prepare_images(images[start : start + BATCH])["pixel_values"]
            whole, patches = image_and_local_features(self.encoder.model, pixels, tuple(local))
            embeddings.append(normalize(whole.float(), dim=-1))
            for path, values in patches.items():
                local[path].append(values.float())
        labels, rank, seen = (torch.tensor([one[place] for one in chosen]) for place in (1, 2, 3))
        return Shots(
            images,
            labels,
            rank,
            seen,
            torch.cat(embeddings),
            {path: torch.cat(parts) for path, parts in local.items()},
        )


def emoji(root: Path, encoder: DualEncoder, seeds: Sequence[int] = SEEDS) -> Iterator[Draw]:
    """Fifty concepts of Twemoji against others, near and far; shots are the same concepts in other styles."""
    bank = Bank(encoder)
    for seed in seeds:
        data = load_suite_data("emoji", data_root=root, seed=seed)
        assert data.fit is not None
        unseen = [one for one in data.covariate_shift if one.name in UNSEEN_STYLES]
        chosen, others = [], []
        generator = np.random.default_rng([seed, 1])
        new, old = (_by_label(sets, generator, len(data.labels)) for sets in (unseen, [data.fit]))
        for label in range(len(data.labels)):
            ranked = [(image, False) for image in new[label]] + [(image, True) for image in old[label]]
            chosen += [(image, label, rank, seen) for rank, (image, seen) in enumerate(ranked[:MAX_SHOTS])]
            others += [(image, label, rank, True) for rank, image in enumerate(old[label][:MAX_SHOTS])]
        yield Draw(
            seed,
            data.labels,
            bank.shots(chosen),
            bank.of(data.id),
            torch.tensor(data.id.labels),
            {one.group: bank.of(one) for one in data.ood},
            bank.shots(others),
        )


def cifar10(root: Path, encoder: DualEncoder, seeds: Sequence[int] = SEEDS) -> Iterator[Draw]:
    """CIFAR-10 against CIFAR-100, MNIST, textures and scenes; the shots alone are drawn."""
    bank = Bank(encoder)
    data = load_suite_data("cifar10", data_root=root)
    assert data.fit is not None and data.fit.labels is not None
    for seed in seeds:
        yield Draw(
            seed,
            data.labels,
            bank.shots(_sample(data.fit.images, data.fit.labels, seed)),
            bank.of(data.id),
            torch.tensor(data.id.labels),
            {one.group if one.group == "near" else one.name: bank.of(one) for one in data.ood},
        )


def tiny_imagenet(root: Path, encoder: DualEncoder, seeds: Sequence[int] = SEEDS) -> Iterator[Draw]:
    """Fifty of the first hundred classes of Tiny ImageNet against the other hundred."""
    bank = Bank(encoder)
    data = load_suite_data("tiny-imagenet", data_root=root)
    assert data.fit is not None and data.fit.labels is not None and data.id.labels is not None
    for seed in seeds:
        classes = np.sort(np.random.default_rng([seed, 2]).choice(len(data.labels), TINY_CLASSES, replace=False))
        place = {label: new for new, label in enumerate(classes.tolist())}
        fit_rows = [row for row, label in enumerate(data.fit.labels) if label in place]
        id_rows = [row for row, label in enumerate(data.id.labels) if label in place]
        assert data.fit.images is not None
        yield Draw(
            seed,
            [data.labels[label] for label in place],
            bank.shots(
                _sample(
                    [data.fit.images[row] for row in fit_rows],
                    [place[data.fit.labels[row]] for row in fit_rows],
                    seed,
                )
            ),
            bank.of(data.id).take(id_rows),
            torch.tensor([place[data.id.labels[row]] for row in id_rows]),
            {one.group: bank.of(one) for one in data.ood},
        )


def clothing(root: Path, encoder: DualEncoder, seeds: Sequence[int] = SEEDS) -> Iterator[Draw]:
    """Five kinds of clothes against the other five; ID images are those that are no shots."""
    bank = Bank(encoder)
    folders = sorted(folder for folder in (root / "data" / "clothing").iterdir() if folder.is_dir())
    files = {folder.name: sorted(folder.glob("*.jpg")) for folder in folders}
    for seed in seeds:
        names = np.random.default_rng([seed, 3]).choice(sorted(files), CLOTHING_CLASSES, replace=False).tolist()
        images = [(file, label) for label, name in enumerate(names) for file in files[name]]
        chosen = _sample([file for file, _ in images], [label for _, label in images], seed)
        used = {file for file, *_ in chosen}
        known = [(file, label) for file, label in images if file not in used]
        unknown = [file for name in files if name not in names for file in files[name]]

        def embed(found: Sequence[Path]) -> Features:
            return bank.features(found, [str(file) for file in found], "clothing")

        yield Draw(
            seed,
            names,
            bank.shots(chosen),
            embed([file for file, _ in known]),
            torch.tensor([label for _, label in known]),
            {"near": embed(unknown)},
        )


def _by_label(sets: Sequence[LoadedSet], generator: np.random.Generator, classes: int) -> list[list[Any]]:
    """The images of each class, in an order that is drawn."""
    found: list[list[Any]] = [[] for _ in range(classes)]
    for one in sets:
        assert one.images is not None and one.labels is not None
        for row, label in enumerate(one.labels):
            found[label].append(one.images[row])
    return [[images[row] for row in generator.permutation(len(images))] for images in found]


def _sample(images: Any, labels: Sequence[int], seed: int) -> list[tuple[Any, int, int, bool]]:
    """`MAX_SHOTS` images of each class; fewer shots are among more."""
    ranks: dict[int, int] = {}
    for rank in reversed(range(MAX_SHOTS)):
        ranks |= dict.fromkeys(sample_shots(labels, rank + 1, seed), rank)
    return [(images[row], labels[row], rank, False) for row, rank in sorted(ranks.items())]


# The data sets, and the words that contexts begin with
SETS: Mapping[str, tuple[Callable[..., Iterator[Draw]], str]] = {
    "emoji": (emoji, "a drawing of a"),
    "cifar10": (cifar10, "a photo of a"),
    "tiny_imagenet": (tiny_imagenet, "a photo of a"),
    "clothing": (clothing, "a photo of a"),
}
