# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of adapting_clip.py: fine-tuning against linear probing; ID accuracy against AUROC over what was trained."""

import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapting_clip_data import (
    COLORS,
    CONVENTION,
    INK,
    MARKERS,
    ZERO_SHOT,
    Draw,
    Results,
    cifar10,
    emoji,
    fitted,
    make_figure,
    save_figure,
    say,
    spread,
    table,
    write,
)
from scipy.stats import linregress
from torch import Tensor
from torch.nn.functional import normalize
from transformers import TrainerCallback

from clipn_hf import CLIPNModel, DualEncoder
from clipn_hf.evaluation.metrics import auroc, id_accuracy
from clipn_hf.image_inputs import prepare_image
from clipn_hf.images import load_image
from clipn_hf.probing import LinearProbe, few_shot_mask, train_linear_probe
from clipn_hf.scores import energy, fit_gaussians, msp, nearest_neighbors, relative_mahalanobis
from clipn_hf.training import Augmentation
from clipn_hf.training.finetuning import FinetuningArguments, FinetuningTrainer, LabelledImages

# What is trained: learning rate and epochs, set once and not searched. AdamW with the trainer's other defaults.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "full fine-tuning": {"tuning": "full", "learning_rate": 1e-4},
    "LoRA": {"tuning": "lora", "learning_rate": 1e-3},
    "from random weights": {"tuning": "full", "learning_rate": 1e-3},
}
SCRATCH = "from random weights"
EPOCHS = {"emoji": 5, "cifar10": 3}
EMOJI_DRAWS = 3
# Of CIFAR-10: images of a class to fit on and to test; of each OOD set of both.
FIT_SHOTS, ID_SHOTS, OOD_IMAGES = 100, 50, 200
BATCH = 64
TITLES = {
    "emoji": f"Emoji, {EMOJI_DRAWS} draws of 50 concepts",
    "cifar10": "CIFAR-10, one draw",
}
GROUPS = {
    "emoji": {"near": "near", "far": "far"},
    "cifar10": {"near": "CIFAR-100", "MNIST": "MNIST", "Textures": "textures", "Scenes": "scenes"},
}
MEASURES = ("1-NN", "RMD", "linear probe, MSP", "linear probe, Energy")


class Images:
    """The images of a draw, read once."""

    def __init__(self, draw: Draw, parts: Mapping[str, Sequence[int]], image_processor: Any) -> None:
        self.pictures = {name: [load_image(draw.images[name][row]) for row in rows] for name, rows in parts.items()}
        self.pixels = {
            name: torch.cat([prepare_image(picture, image_processor)["pixel_values"] for picture in pictures])
            for name, pictures in self.pictures.items()
        }


@torch.no_grad()
def embed(model: Any, pixels: Tensor) -> Tensor:
    """Embeddings of unit norm, float32, of a model that is being trained."""
    was_training = model.training
    model.eval()
    parts = [model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(256)]
    model.train(was_training)
    return normalize(torch.cat(parts).float(), dim=1)


class Checkpoints(TrainerCallback):
    """Measures after each epoch."""

    def __init__(self, measure: Any) -> None:
        self.measure = measure

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(round(state.epoch))


def finetuning(root: Path, output: Path) -> None:
    """Train image encoders, and measure them and linear probes on the frozen one."""
    results = Results()
    results.facts["checkpoints"] = []
    for name in TITLES:
        for number, draw in enumerate(_draws(name, root)):
            say(f"{TITLES[name]}, draw {number + 1}")
            _finetune_draw(results, name, number, draw)
        results.save(output / "finetuning.json")
    write(output / "finetuning.md", _page(results))


def _draws(name: str, root: Path) -> Iterator[Draw]:
    if name == "cifar10":
        yield from cifar10(root)
    else:
        for number, draw in enumerate(emoji(root)):
            if number == EMOJI_DRAWS:
                return
            yield draw


def _finetune_draw(results: Results, name: str, number: int, draw: Draw) -> None:
    encoder = draw.encoder
    assert isinstance(encoder, DualEncoder)
    parts = _parts(name, draw)
    images = Images(draw, parts, encoder.processor.image_processor)
    embeddings = {group: (draw.ood | {"fit": draw.fit, "id": draw.id})[group][rows] for group, rows in parts.items()}
    labels = draw.fit_labels[parts["fit"]], draw.id_labels[parts["id"]]
    results.facts.setdefault("images", {})[name] = {group: len(rows) for group, rows in parts.items()}

    accuracy = results.facts.setdefault("accuracy", {}).setdefault(name, {})

    def note(model: str, predictions: Tensor) -> None:
        share = 100 * id_accuracy(predictions.numpy(), labels[1].numpy())
        accuracy.setdefault(model, []).append(round(share, 3))

    def checkpoint(family: str, epoch: int, found: Mapping[str, Tensor]) -> None:
        measured = _measure(found, *labels, len(draw.labels))
        entry = {"data": name, "draw": number, "family": family, "epoch": epoch, **measured}
        results.facts["checkpoints"].append(entry)

    for method in ("msp", "energy"):
        detector = fitted(draw, method)
        scores = {group: detector.score(found) for group, found in embeddings.items() if group != "fit"}
        results.add(name, f"zero-shot, {ZERO_SHOT[method]}", scores.pop("id"), scores, resample=number == 0)
    note("zero-shot", detector.predict(embeddings["id"]))
    checkpoint("clipn-tiny", 0, embeddings)

    probe = train_linear_probe(
        embeddings["fit"], labels[0], num_classes=len(draw.labels), device="cpu", progress=False
    )
    _judge_model(results, name, "linear probe", embeddings, probe, labels[0])
    note("linear probe", _logits(probe, embeddings["id"]).argmax(dim=1))

    for run, settings in RUNS.items():
        scratch = run == SCRATCH
        if scratch and name == "emoji":
            # Five to ten drawings of a concept are too few to learn to see from.
            continue
        torch.manual_seed(number)
        fresh = DualEncoder.from_pretrained(dtype="float32")
        model = CLIPNModel(fresh.model.config).float() if scratch else fresh.model
        head = _head(probe, embed(model, images.pixels["fit"]) if scratch else None)
        say(f"{run}: {settings}")
        with tempfile.TemporaryDirectory() as folder:
            epochs = EPOCHS[name] * (2 if scratch else 1)
            arguments = FinetuningArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                use_cpu=True,
                seed=number,
                **settings,
            )
            size = tuple(images.pixels["fit"].shape[-2:])
            rows = [
                {"image": picture, "label": int(label)}
                for picture, label in zip(images.pictures["fit"], labels[0], strict=True)
            ]
            trainer = FinetuningTrainer(
                model,
                arguments,
                head=head,
                processing_class=fresh.processor,
                train_dataset=LabelledImages(rows, Augmentation(size, flip_probability=0.5), seed=number),
            )
            if scratch:
                checkpoint(run, 0, _embed_all(trainer.encoder, images))
            callback = Checkpoints(
                lambda epoch, run=run, trainer=trainer: checkpoint(run, epoch, _embed_all(trainer.encoder, images))
            )
            trainer.add_callback(callback)
            trainer.train()
        found = _embed_all(trainer.encoder, images)
        _judge_model(results, name, run, found, head, labels[0])
        note(run, _logits(head, found["id"]).argmax(dim=1))


def _parts(name: str, draw: Draw) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(0)
    if name == "emoji":
        chosen = {"fit": list(range(len(draw.fit))), "id": list(range(len(draw.id)))}
    else:
        chosen = {
            "fit": few_shot_mask(draw.fit_labels, FIT_SHOTS).nonzero().flatten().tolist(),
            "id": few_shot_mask(draw.id_labels, ID_SHOTS).nonzero().flatten().tolist(),
        }
    return chosen | {
        group: torch.randperm(len(found), generator=generator)[:OOD_IMAGES].tolist()
        for group, found in draw.ood.items()
    }


def _head(probe: LinearProbe, features: Tensor | None) -> LinearProbe:
    """The probe to begin with; for random weights an untrained one that standardizes their embeddings."""
    head = LinearProbe(probe.dim, probe.num_classes)
    head.load_state_dict(probe.state_dict())
    if features is not None:
        head.mean.copy_(features.mean(dim=0))
        head.std.copy_(features.std(dim=0).clamp_min(1e-3))
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    return head


def _embed_all(model: Any, images: Images) -> dict[str, Tensor]:
    return {group: embed(model, pixels) for group, pixels in images.pixels.items()}


@torch.no_grad()
def _logits(probe: LinearProbe, features: Tensor) -> Tensor:
    return probe(features)


def _judge_model(
    results: Results, name: str, model: str, found: Mapping[str, Tensor], head: LinearProbe, fit_labels: Tensor
) -> None:
    logits = {group: _logits(head, features) for group, features in found.items()}
    with warnings.catch_warnings():
        # The covariance of the logits of few images is shrunk.
        warnings.simplefilter("ignore")
        gaussians = fit_gaussians(logits["fit"], fit_labels, head.num_classes)
    by_score = {
        "MSP": {group: msp(values) for group, values in logits.items()},
        "Energy": {group: energy(values) for group, values in logits.items()},
        "RMD on logits": {group: relative_mahalanobis(values, gaussians) for group, values in logits.items()},
        "1-NN": {group: nearest_neighbors(features, found["fit"]) for group, features in found.items()},
    }
    resample = name == "cifar10"
    for score, values in by_score.items():
        del values["fit"]
        results.add(name, f"{model}, {score}", values.pop("id"), values, resample)


def _measure(found: Mapping[str, Tensor], fit_labels: Tensor, id_labels: Tensor, classes: int) -> dict[str, Any]:
    """ID accuracy of a linear probe on the embeddings of a checkpoint, and AUROC in percent by group and score."""
    probe = train_linear_probe(found["fit"], fit_labels, num_classes=classes, device="cpu", progress=False)
    logits = {group: _logits(probe, features) for group, features in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gaussians = fit_gaussians(found["fit"], fit_labels, classes)
    scored = {
        "1-NN": {group: nearest_neighbors(features, found["fit"]) for group, features in found.items()},
        "RMD": {group: relative_mahalanobis(features, gaussians) for group, features in found.items()},
        "linear probe, MSP": {group: msp(values) for group, values in logits.items()},
        "linear probe, Energy": {group: energy(values) for group, values in logits.items()},
    }
    groups = [group for group in found if group not in ("fit", "id")]
    right = logits["id"].argmax(dim=1) == id_labels
    return {
        "accuracy": round(100 * right.double().mean().item(), 3),
        "auroc": {
            score: {group: round(100 * auroc(values["id"], values[group]), 3) for group in groups}
            for score, values in scored.items()
        },
    }


def _page(results: Results) -> str:
    counts = results.facts["images"]
    listed = {name: ", ".join(f"{count:,} {group}" for group, count in counts[name].items()) for name in counts}
    settings = "; ".join(f"{run}: learning rate {one['learning_rate']:g}" for run, one in RUNS.items())
    lines = [
        "# Fine-tuning and linear probing",
        "The image encoder of clipn-tiny, trained as a classifier whose head begins as the linear probe on the frozen "
        "encoder: whole, or by LoRA of rank 16 in its attention. For comparison, the same architecture from random "
        f"weights. AdamW, batches of {BATCH}, cosine schedule; {settings}; {EPOCHS['emoji']} epochs on emoji, "
        f"{EPOCHS['cifar10']} on CIFAR-10, twice as many from random weights. These were set once and not searched. "
        f"Images on emoji (of the last draw): {listed['emoji']}; on CIFAR-10: {listed['cifar10']}.",
        CONVENTION,
    ]
    for name, title in TITLES.items():
        groups = GROUPS[name]
        accuracy = results.facts["accuracy"][name]
        rows = [[model, spread({"accuracy": shares}, "accuracy")] for model, shares in accuracy.items()]
        lines += [f"## {title}", table(["model", "ID accuracy, %"], rows)]
        lines += [results.table(name, "model, score", groups)]
        models = [one for one in accuracy if one not in ("zero-shot", "linear probe")]
        rows = []
        for model in models:
            for score in ("MSP", "Energy", "RMD on logits", "1-NN"):
                pair = f"linear probe, {score}", f"{model}, {score}"
                cells = [results.difference(name, *pair, group) for group in groups]
                rows.append([f"{score}: linear probe − {model}", *cells])
        lines += ["Differences in AUROC:", table(["difference", *groups.values()], rows)]
    return "\n\n".join(lines) + "\n"


# --- Correlation -----------------------------------------------------------------------------------------------------


def correlation(root: Path, output: Path) -> None:
    """ID accuracy against AUROC over the checkpoints of `finetuning`."""
    content = json.loads((output / "finetuning.json").read_text(encoding="utf-8"))
    checkpoints = _over_draws(content["facts"]["checkpoints"])
    lines = [
        "# ID accuracy and AUROC over checkpoints",
        "Every *model* here is a checkpoint of one small architecture (the image encoder of clipn-tiny): as it comes, "
        "after each epoch of fine-tuning (whole and LoRA), and, on CIFAR-10, after each epoch of training from random "
        "weights and before the first one. On emoji accuracy and AUROC are means over the draws. The paper compares "
        "independent models of many architectures and training sets, which are not at hand. Checkpoints of one run "
        "depend on each other, so that the intervals, of a bootstrap over checkpoints, are too narrow. ID accuracy "
        "is that of a linear probe on the frozen embeddings of the checkpoint, and AUROC is measured on the same "
        "embeddings. R² is of the straight line; the paper reports at least 0.92.",
    ]
    rows = []
    for name, groups in GROUPS.items():
        chosen = [one for one in checkpoints if one["data"] == name]
        for score in MEASURES:
            for group, title in groups.items():
                rows.append([f"{_title(name)}, {title}, {score}", *_fit(chosen, score, group)])
        pretrained = [one for one in chosen if one["family"] != SCRATCH]
        if len(pretrained) < len(chosen):
            for score in MEASURES[:2]:
                for group, title in groups.items():
                    label = f"{_title(name)}, {title}, {score}, without random weights"
                    rows.append([label, *_fit(pretrained, score, group)])
    lines.append(table(["data, OOD, score", "checkpoints", "slope", "R² [95 %]"], rows))
    lines += ["## Checkpoints", "AUROC in percent."]
    for name, groups in GROUPS.items():
        header = ["checkpoint", "accuracy, %"]
        header += [f"{title}, {score}" for title in groups.values() for score in MEASURES[:2]]
        rows = [
            [
                f"{one['family']}, epoch {one['epoch']}",
                f"{one['accuracy']:.1f}",
                *(f"{one['auroc'][score][group]:.1f}" for group in groups for score in MEASURES[:2]),
            ]
            for one in checkpoints
            if one["data"] == name
        ]
        lines += [f"### {_title(name)}", table(header, rows)]
    write(output / "correlation.md", "\n\n".join(lines) + "\n")
    save_figure(_draw_correlation(checkpoints), output / "correlation.png")


def _over_draws(checkpoints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over draws, which differ by more than the checkpoints do."""
    runs: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for one in checkpoints:
        runs.setdefault((one["data"], one["family"], one["epoch"]), []).append(one)
    return [
        {
            "data": data,
            "family": family,
            "epoch": epoch,
            "accuracy": statistics.mean(one["accuracy"] for one in found),
            "auroc": {
                score: {group: statistics.mean(one["auroc"][score][group] for one in found) for group in groups}
                for score, groups in found[0]["auroc"].items()
            },
        }
        for (data, family, epoch), found in runs.items()
    ]


def _title(name: str) -> str:
    return {"emoji": "Emoji", "cifar10": "CIFAR-10"}[name]


def _fit(checkpoints: Sequence[Mapping[str, Any]], score: str, group: str) -> list[str]:
    x = np.array([one["accuracy"] for one in checkpoints])
    y = np.array([one["auroc"][score][group] for one in checkpoints])
    line = linregress(x, y)
    generator = np.random.default_rng(0)
    resampled = []
    while len(resampled) < 2000:
        rows = generator.integers(len(x), size=len(x))
        if np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:
            resampled.append(np.corrcoef(x[rows], y[rows])[0, 1] ** 2)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return [str(len(x)), f"{line.slope:+.2f}", f"{line.rvalue**2:.2f} [{low:.2f}, {high:.2f}]"]


def _draw_correlation(checkpoints: Sequence[Mapping[str, Any]]) -> Any:
    panels = [
        ("cifar10", "near", "CIFAR-10, CIFAR-100"),
        ("cifar10", "Scenes", "CIFAR-10, scenes"),
        ("emoji", "near", "Emoji, near"),
    ]
    figure, all_axes = make_figure(len(panels))
    handles = {}
    for axes, (name, group, title) in zip(all_axes, panels, strict=True):
        chosen = [one for one in checkpoints if one["data"] == name]
        families = ["clipn-tiny", *RUNS]
        for score, filled in (("1-NN", True), ("RMD", False)):
            for index, family in enumerate(families):
                own = [one for one in chosen if one["family"] == family]
                if own:
                    handles[f"{family}, {score}"] = axes.plot(
                        [one["accuracy"] for one in own],
                        [one["auroc"][score][group] for one in own],
                        linestyle="",
                        marker=MARKERS[index],
                        markersize=5,
                        color=COLORS[index],
                        markerfacecolor=COLORS[index] if filled else "white",
                    )[0]
        axes.set_title(title, fontsize=9, color=INK, loc="left", fontweight="bold")
        axes.set_xlabel("ID accuracy of a linear probe, %", fontsize=9, color=INK)
    all_axes[0].set_ylabel("AUROC, %", fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
