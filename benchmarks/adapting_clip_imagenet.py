# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Part of adapting_clip.py: what class means, a precision matrix and a linear probe of ImageNet suffice for."""

from pathlib import Path

import numpy as np
import torch
from adapting_clip_data import CONVENTION, Results, say, write
from torch.nn.functional import normalize

from clipn_hf.evaluation.suite import read_names
from clipn_hf.scores import Gaussians, energy, mahalanobis, msp, relative_mahalanobis

STATISTICS = Path("features", "clip_vitb16_openai_imagenet_stats.npz")
SPLITS = 10
ID_CLASSES, DRAWN = 500, 4
TITLES = {"other": "drawn around the other 500 means"}


def imagenet(root: Path, output: Path) -> None:
    """Look at the statistics, and at features drawn from them."""
    from clipn_hf.evaluation import suite

    names = [name for _, name in read_names(Path(suite.__file__).parent / "class_names" / "imagenet1k.txt")]
    with np.load(root / STATISTICS) as arrays:
        means, precision, weight, bias = (
            torch.from_numpy(arrays[key]).double() for key in ("class_mean", "precision", "probe_weight", "probe_bias")
        )
    results = Results()
    say("class means")
    logits = means @ weight.T + bias
    right = logits.argmax(dim=1) == torch.arange(len(means))
    unit = normalize(means, dim=1) * means.norm(dim=1).mean()
    unit_right = (unit @ weight.T + bias).argmax(dim=1) == torch.arange(len(means))
    covariance = torch.linalg.inv(precision)
    between = (means - means.mean(dim=0)).T @ (means - means.mean(dim=0)) / len(means)
    within = covariance - between
    rest = torch.linalg.eigvalsh(within)
    if rest[0] <= 0:
        raise ValueError("The precision matrix is not that of all images: these vary less than the class means do.")
    whitened = means @ torch.linalg.cholesky(precision)
    distances = torch.cdist(whitened, whitened).square()
    distances.fill_diagonal_(float("inf"))
    nearest, neighbor = distances.min(dim=1)
    pairs = []
    for row in nearest.argsort().tolist():
        pair = tuple(sorted((names[row], names[int(neighbor[row])])))
        if pair not in pairs:
            pairs.append(pair)
    results.facts = {
        "norms": [round(value, 2) for value in (means.norm(dim=1).min().item(), means.norm(dim=1).max().item())],
        "right": round(100 * right.double().mean().item(), 2),
        "right at equal norm": round(100 * unit_right.double().mean().item(), 2),
        "traces": [round(covariance.trace().item(), 1), round(between.trace().item(), 1)],
        "smallest eigenvalue of the rest": rest[0].item(),
        "nearest": [round(value, 1) for value in nearest.quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()],
        "pairs": ["{} and {}".format(*pair) for pair in pairs[:6]],
        "accuracy": {"probe": [], "nearest mean": []},
    }
    say("drawn features")
    factor = torch.linalg.cholesky(within)
    within_precision = torch.linalg.inv(within)
    scale = torch.linalg.cholesky(within_precision)
    for seed in range(SPLITS):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(means), generator=generator)
        noise = torch.randn(len(means) * DRAWN, means.shape[1], generator=generator, dtype=torch.float64)
        drawn = means.repeat_interleave(DRAWN, dim=0) + noise @ factor.T
        classes = torch.arange(len(means)).repeat_interleave(DRAWN)
        chosen = order[:ID_CLASSES].sort().values
        is_id = torch.isin(classes, chosen)
        own = means[chosen]
        everything = within + (own - own.mean(dim=0)).T @ (own - own.mean(dim=0)) / len(own)
        gaussians = Gaussians(own, within_precision, own.mean(dim=0), torch.linalg.inv(everything))
        of_probe = drawn @ weight[chosen].T + bias[chosen]
        found = {
            "MSP of the probe": msp(of_probe.float()),
            "Energy of the probe": energy(of_probe.float()),
            "Mahalanobis": mahalanobis(drawn, gaussians),
            "relative Mahalanobis": relative_mahalanobis(drawn, gaussians),
        }
        for variant, scores in found.items():
            results.add("drawn", variant, scores[is_id], {"other": scores[~is_id]})
        by_mean = torch.cdist(drawn @ scale, means @ scale).argmin(dim=1)
        by_probe = (drawn @ weight.T + bias).argmax(dim=1)
        for kind, predictions in (("probe", by_probe), ("nearest mean", by_mean)):
            share = 100 * (predictions == classes).double().mean().item()
            results.facts["accuracy"][kind].append(round(share, 3))
    results.save(output / "imagenet.json")
    write(output / "imagenet.md", _page(results))


def _page(results: Results) -> str:
    facts = results.facts
    means = {kind: sum(values) / len(values) for kind, values in facts["accuracy"].items()}
    lines = [
        "# Statistics of ImageNet",
        "Class means of the image embeddings of ImageNet-1k by CLIP ViT-B/16, a precision matrix and a linear probe. "
        "There are no images and no embeddings of images, so that **no accuracy and no AUROC of ImageNet can be "
        "measured here**. What can be said:",
        f"- The means are those of embeddings that were not brought to unit norm: their norms are {facts['norms'][0]} "
        f"to {facts['norms'][1]}. A detector here has unit norm, so that these statistics cannot be put into one.\n"
        f"- The probe gives {facts['right']:.1f} % of the 1,000 means their own class, and "
        f"{facts['right at equal norm']:.1f} % when all are brought to the same norm. That is a check that rows "
        "belong together, no result: means are easier than images.\n"
        f"- The inverse of the precision matrix has the trace {facts['traces'][0]}, the covariance of the means "
        f"{facts['traces'][1]}. Their difference has no negative eigenvalue, so that the former may well be the "
        "covariance of all images, and the difference that within the classes. It is taken for that below.\n"
        "- Under that precision, the squared Mahalanobis distance of a mean to the nearest other one is "
        f"{facts['nearest'][1]} in the median (5 to 95 %: {facts['nearest'][0]} to {facts['nearest'][2]}). The most "
        f"alike are {'; '.join(facts['pairs'])}.",
        "## Features drawn from the statistics",
        f"{DRAWN} features of each class, drawn from a normal distribution around its mean with the difference of the "
        "two covariances; "
        f"500 classes are ID, the others OOD, ten splits. *This says how the scores behave if the model of the "
        "Mahalanobis distance is true, and nothing of ImageNet*: the probe gives "
        f"{means['probe']:.1f} % of the drawn features their class, the nearest mean {means['nearest mean']:.1f} %, "
        "which no probe has on images of a thousand classes.",
        CONVENTION,
        results.table("drawn", "score", TITLES),
    ]
    return "\n\n".join(lines) + "\n"
