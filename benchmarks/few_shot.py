# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""CoOp, LoCoOp and CLIP-OS with 1, 2 and 4 images of each class, on what fits on a small machine.

    OMP_NUM_THREADS=1 python benchmarks/few_shot.py --data-root DATA --output benchmarks/results/few_shot

Parts are four data sets, each of which writes its numbers as JSON whenever a question is answered, and `pages`, which
makes tables and figures of what there is and needs the extra `[benchmarks]`. The model is the embedded clipn-tiny.
Questions:

- `comparison`: the methods beside each other and beside zero-shot detection, by all scores.
- `mechanisms`: CLIP-OS without each of its mechanisms, and with other masks and outliers.
- `beta`, `alpha`: CLIP-OS with other values of both.
- `settings`: other learning rates and first words, among them those of the papers.
- `styles`: shots in styles that the model was trained on.

The data root holds `data/`, as src/clipn_hf/evaluation/suites/README.md says, and `data/clothing` with a folder for
each kind. docs/few_shot.md says on what settings were chosen.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from few_shot_pages import pages
from few_shot_sets import SETS, Draw, Shots
from few_shot_training import (
    ALPHA,
    ALPHAS,
    BETA,
    BETAS,
    DRAWN_VARIANTS,
    TRAINERS,
    VARIANTS,
    Labels,
    Prompts,
    Variant,
    diagnose,
    measure,
    train,
    zero_shot,
)
from transformers.utils import logging

from clipn_hf import DualEncoder
from clipn_hf.files import atomic_path

SHOTS = (1, 2, 4)
MECHANISM_SHOTS = (1, 4)
# Of all questions but the comparison
FEWER_SEEDS = 5
SWEPT = ("emoji", "cifar10")
# Learning rate and whether the context begins with words: that of the papers first.
SETTINGS = ((0.002, False), (0.002, True), (0.05, False))
SETTING_SEEDS = 3


class Run:
    """Everything that is measured on one data set."""

    def __init__(self, name: str, root: Path, output: Path) -> None:
        make, self.init = SETS[name]
        self.name = name
        self.path = output / f"{name}.json"
        self.encoder = DualEncoder.from_pretrained(device="cpu")
        self.draws = list(make(root, self.encoder))
        self.labels = [Labels(self.encoder, draw.labels) for draw in self.draws]
        self.rows: list[dict[str, Any]] = []
        self.diagnoses: list[dict[str, Any]] = []
        first = self.draws[0]
        self.facts = {
            "labels": len(first.labels),
            "ID images": len(first.id_labels),
            "OOD images": {name: len(found.embeddings) for name, found in first.ood.items()},
            "seeds": [draw.seed for draw in self.draws],
            "first words": self.init,
            # Of all seeds; where an unseen style lacks a concept, a seen one takes its place.
            "shots in seen styles": {
                str(count): round(
                    100 * sum(_share_seen(draw.shots.take(count)) for draw in self.draws) / len(self.draws)
                )
                for count in SHOTS
            },
        }

    def answer_all(self) -> None:
        """Answer all questions, and save after each."""
        questions = [self.comparison(), self.mechanisms()]
        if self.name in SWEPT:
            questions += [self.sweeps()]
        if self.name == "emoji":
            questions += [self.settings(), self.styles()]
        for question in questions:
            for row in question:
                self.rows.append(row)
            self.save()

    def comparison(self) -> Iterator[dict[str, Any]]:
        """All methods, by number of shots."""
        for draw, labels in zip(self.draws, self.labels, strict=True):
            for model, prompts in zero_shot(self.encoder, labels, self.init):
                yield self.row("comparison", model, 0, draw, prompts)
        for count in SHOTS:
            for draw, labels in zip(self.draws, self.labels, strict=True):
                shots = draw.shots.take(count)
                for method in TRAINERS:
                    prompts = train(self.encoder, labels, shots, method, draw.seed, self.init)
                    yield self.row("comparison", method, count, draw, prompts)
                    if method == "CLIP-OS" and count == 1:
                        found = diagnose(draw, shots, labels, prompts, on_white=self.name == "emoji")
                        self.diagnoses.append({"seed": draw.seed, **found})
            self.save()

    def mechanisms(self) -> Iterator[dict[str, Any]]:
        """CLIP-OS in other ways."""
        variants = {**VARIANTS, **(DRAWN_VARIANTS if self.name == "emoji" else {})}
        for count in MECHANISM_SHOTS:
            for draw in self.draws[:FEWER_SEEDS]:
                for title, variant in variants.items():
                    yield self.train_row("mechanisms", title, count, draw, "CLIP-OS", variant=variant)
            self.save()

    def sweeps(self) -> Iterator[dict[str, Any]]:
        """Other values of beta and alpha than those of the comparison."""
        for draw in self.draws[:FEWER_SEEDS]:
            for beta in BETAS:
                if beta != BETA:
                    yield self.train_row("beta", f"{beta:g}", 1, draw, "CLIP-OS", variant=Variant(beta=beta))
            for alpha in ALPHAS:
                if alpha != ALPHA:
                    yield self.train_row("alpha", f"{alpha:g}", 1, draw, "CLIP-OS", alpha=alpha)

    def settings(self) -> Iterator[dict[str, Any]]:
        """Other learning rates and first words."""
        for draw in self.draws[:SETTING_SEEDS]:
            for rate, has_words in SETTINGS:
                for method in TRAINERS:
                    title = f"{method}, {rate:g}, {'words' if has_words else '16 at random'}"
                    init = self.init if has_words else None
                    yield self.train_row("settings", title, 1, draw, method, init=init, learning_rate=rate)

    def styles(self) -> Iterator[dict[str, Any]]:
        """Shots in styles that the model was trained on."""
        for draw in self.draws[:FEWER_SEEDS]:
            assert draw.other_shots is not None
            for method in TRAINERS:
                yield self.train_row("styles", method, 1, draw, method, shots=draw.other_shots)

    def train_row(
        self,
        question: str,
        title: str,
        count: int,
        draw: Draw,
        method: str,
        *,
        shots: Shots | None = None,
        variant: Variant | None = None,
        init: str | None = "",
        **settings: Any,
    ) -> dict[str, Any]:
        """Train and measure once."""
        prompts = train(
            self.encoder,
            self.labels[self.draws.index(draw)],
            (shots or draw.shots).take(count),
            method,
            draw.seed,
            self.init if init == "" else init,
            variant,
            **settings,
        )
        return self.row(question, title, count, draw, prompts)

    def row(self, question: str, model: str, count: int, draw: Draw, prompts: Prompts) -> dict[str, Any]:
        """Measure prompts."""
        about = {"question": question, "model": model, "shots": count, "seed": draw.seed}
        loss = {} if prompts.loss is None else {"training_loss": round(prompts.loss, 4)}
        say(f"{self.name}: {question}, {model}, {count}, seed {draw.seed}")
        return {**about, **loss, **measure(draw, prompts)}

    def save(self) -> None:
        """Write what there is."""
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        diagnoses = ",\n".join(json.dumps(row) for row in self.diagnoses)
        with atomic_path(self.path) as partial:
            partial.write_text(
                f'{{"facts": {json.dumps(self.facts)},\n"rows": [\n{lines}\n],\n"diagnoses": [\n{diagnoses}\n]}}\n',
                encoding="utf-8",
            )


def say(text: str) -> None:
    """Print progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _share_seen(shots: Shots) -> float:
    return shots.seen.float().mean().item()


def main(data_root: Path, output: Path, parts: Sequence[str]) -> None:
    """Measure data sets, and write pages."""
    output.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    for part in parts:
        start = time.perf_counter()
        say(part)
        if part == "pages":
            pages(data_root, output)
        else:
            Run(part, data_root, output).answer_all()
        say(f"{part}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of pages, figures and numbers")
    parser.add_argument("--parts", nargs="+", choices=[*SETS, "pages"], default=[*SETS, "pages"])
    arguments = parser.parse_args()
    main(arguments.data_root, arguments.output, arguments.parts)
