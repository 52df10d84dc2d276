# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What negative labels are worth: NegLabel, CSP and NegRefine against scores that do without, and all their settings.

    OMP_NUM_THREADS=1 python benchmarks/negative_labels.py --data-root DATA --output benchmarks/results/negative_labels

Three parts, each with a page of tables, and figures, which need the extra `[benchmarks]`:

- `real`: embeddings of photos by CLIP ViT-B/32, as in the suites cifar10-features and cifar10-features-split.
- `emoji`: drawings, judged by the embedded clipn-tiny, as in the suites emoji and emoji-openmoji.
- `styles`: the same labels, ID and OOD concepts in thirteen art styles.

The data root holds `data/` and `features/`, as src/clipn_hf/evaluation/suites/README.md says. Embeddings are kept in
the cache of the library. Defaults are those of the papers, but for the template: a model that brings templates along,
such as clipn-tiny, is asked in the first of them. Where another value is better, that is known from the images that
are measured here.
"""

import argparse
import csv
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from clipn_hf import DualEncoder, OODDetector, PrecomputedEncoder, extract_features, mine_negative_labels
from clipn_hf.evaluation.figures import threshold_at
from clipn_hf.evaluation.metrics import auroc, bootstrap_interval, fpr_at_tpr, id_accuracy
from clipn_hf.evaluation.sets import SuiteData, load_suite_data
from clipn_hf.features import cached_class_embeddings
from clipn_hf.files import atomic_path
from clipn_hf.methods import METHODS, method_inputs
from clipn_hf.negative_settings import ADJECTIVE_TEMPLATES, FILTERS, TEMPLATES
from clipn_hf.negatives import NegativeLabels, filter_candidates, load_corpus

PARTS = ("real", "emoji", "styles")
WITHOUT = ("mcm", "msp", "max_logit", "energy")
CLIPN_METHODS = ("ctw", "atd")
NEGATIVES = {"neglabel": "NegLabel", "csp": "CSP", "negrefine": "NegRefine"}
FRACTIONS = (0.01, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
GROUPS = (1, 2, 5, 10, 20, 50, 100)
FRACTION, QUANTILE = 0.15, 0.95
# What methods with negative labels are called when labels and candidates are put into other templates than by default.
WORDINGS = {
    "default": "",
    "adjectives": ", adjectives as nouns",
    "all": ", in all templates of the model",
    "paper": ", in the paper's template",
}
ID_CATEGORIES = ("animals & nature", "food & drink", "objects")
HELD_OUT = ("twemoji", "openmoji", "openmoji-black", "emojione-v1")
# It has a third of the concepts, so that few are left that all styles have.
SMALL_STYLES = ("streamline",)
# One that was trained on and one that was not.
CALIBRATED = ("noto", "twemoji")
# Whether the style of the threshold and that of the images are held out.
TRANSFERS = {
    "trained on → trained on": (False, False),
    "trained on → held out": (False, True),
    "held out → trained on": (True, False),
    "held out → held out": (True, True),
}
NUM_LABELS = 50
EMOJI = Path("data", "emoji")
DRAWS = 10
# Two-sided 95 % quantile of Student's t with DRAWS - 1 degrees of freedom.
STUDENT = 2.262
# Those of the figures of evaluations: Okabe and Ito.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#79828E")
LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1)), (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))
MARKERS = "osD^vP*X"
INK, FADED, RULE = "#1A1F26", "#5A6472", "#D5D9DF"

# AUROC and FPR95 in percent of each draw, by what is measured: question, variant and group of OOD images.
Results = dict[tuple[str, str, str], dict[str, list[float]]]


def say(text: str) -> None:
    """Print progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def add(
    results: Results, question: str, variant: str, group: str, scores: Tensor, is_id: Tensor, is_ood: Tensor
) -> None:
    """Measure one draw."""
    entry = results.setdefault((question, variant, group), {"auroc": [], "fpr95": []})
    id_scores, ood_scores = scores[is_id].numpy(), scores[is_ood].numpy()
    entry["auroc"].append(round(100 * auroc(id_scores, ood_scores), 3))
    entry["fpr95"].append(round(100 * fpr_at_tpr(id_scores, ood_scores), 3))


def spread(values: Sequence[float]) -> str:
    """Mean and, of several draws, standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean of the differences of the same draws, with the 95 % interval of Student's t."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    half = STUDENT * statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def results_table(results: Results, question: str, first: str, groups: Mapping[str, str]) -> str:
    """One row per variant: AUROC and FPR95 of each group."""
    header = [first] + [f"{title}, {metric}" for title in groups.values() for metric in ("AUROC ↑", "FPR95 ↓")]
    variants = dict.fromkeys(variant for asked, variant, _ in results if asked == question)
    rows = []
    for variant in variants:
        cells = [results.get((question, variant, group)) for group in groups]
        rows.append(
            [variant] + [spread(cell[metric]) if cell else "" for cell in cells for metric in ("auroc", "fpr95")]
        )
    return table(header, rows)


# --- Candidates and their embeddings ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Candidates:
    """Words that may become negative labels, and their embeddings.

    Args:
        words (`list[str]`): The words.
        kinds (`list[str]`): Which kind each of them is; each kind is mined by itself.
        embeddings (`torch.Tensor` of shape `(words, dim)`): Unit norm.
    """

    words: list[str]
    kinds: list[str]
    embeddings: Tensor

    def of_kinds(self, *kinds: str) -> "Candidates":
        """Those of some kinds."""
        return self.at([place for place, kind in enumerate(self.kinds) if kind in kinds])

    def at(self, places: Sequence[int]) -> "Candidates":
        """Those at some positions."""
        return Candidates(
            [self.words[place] for place in places],
            [self.kinds[place] for place in places],
            self.embeddings[torch.tensor(places, dtype=torch.int64)],
        )

    def mine(
        self,
        id_text: Tensor,
        quantile: float = QUANTILE,
        fraction: float = FRACTION,
        max_similarity: float | None = None,
    ) -> "Candidates":
        """The negative labels, each kind mined by itself as `NegativeLabels.mine` does."""
        found = []
        for kind in dict.fromkeys(self.kinds):
            places = torch.tensor([place for place, of in enumerate(self.kinds) if of == kind])
            order = mine_negative_labels(id_text, self.embeddings[places], quantile, fraction=1.0)
            order = places[order]
            count = math.floor(fraction * len(places) + 1e-9)
            if max_similarity is not None:
                order = order[self.nearest(id_text)[order] <= max_similarity]
            found.append(order[:count])
        return self.at(torch.cat(found).tolist())

    def nearest(self, id_text: Tensor) -> Tensor:
        """The cosine of each with the nearest label."""
        return (self.embeddings @ id_text.T).amax(dim=1)

    def filtered(self, labels: Sequence[str], filters: Sequence[str]) -> tuple["Candidates", int]:
        """What filters leave of them, and how many they drop."""
        left, dropped = filter_candidates(self.words, self.kinds, labels, filters)  # type: ignore[arg-type]
        return self.at(left), sum(dropped.values())


class Words:
    """The words of WordNet and the model's embeddings of texts.

    Mining through `NegativeLabels.mine` reads the embeddings of all candidates from the cache for every draw and every
    variant. Here they are in memory; that both give the same scores is checked once.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        first, every = tuple(encoder.single_template(TEMPLATES)), tuple(encoder.templates)
        # Those of labels and nouns, and those of adjectives.
        self.templates = {
            "default": (first, ADJECTIVE_TEMPLATES),
            "adjectives": (first, first),
            "all": (every, every),
            "paper": (TEMPLATES, ADJECTIVE_TEMPLATES),
        }
        self.corpora = {name: load_corpus(name) for name in ("wordnet", "csp")}
        self._embedded: dict[tuple[str, str], Candidates] = {}

    def corpus(self, name: str, wording: str = "default") -> Candidates:
        """The candidates of a corpus."""
        if (name, wording) not in self._embedded:
            self._embedded[name, wording] = self._embed(name, *self.templates[wording])
        return self._embedded[name, wording]

    def labels(self, labels: Sequence[str], wording: str = "default") -> Tensor:
        """Embeddings of labels."""
        return self.texts(labels, self.templates[wording][0])

    def texts(self, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embeddings of texts, from the cache if they are there."""
        embeddings, _ = cached_class_embeddings(self.encoder, texts, templates, use_no_encoder=False)
        return embeddings.cpu()

    def names(self, names: Sequence[str]) -> Candidates:
        """Candidates that are given."""
        names = list(dict.fromkeys(names))
        return Candidates(names, ["text"] * len(names), self.labels(names))

    def pairs(self, labels: Sequence[str], negatives: Sequence[str], wording: str) -> Callable[..., Tensor]:
        """What embeds "<label> and <negative label>" for NegRefine, many at once.

        Detectors embed them one by one on a CPU, where that takes ten times as long and differs by rounding.
        """
        templates = self.templates[wording][0]

        def embed(pairs: Tensor) -> Tensor:
            texts = [f"{labels[label]} and {negatives[negative]}" for label, negative in pairs.tolist()]
            return self.encoder.class_embeddings(texts, templates, use_no_encoder=False, use_memory=False)[0].cpu()

        return embed

    def _embed(self, corpus: str, templates: Sequence[str], adjective_templates: Sequence[str]) -> Candidates:
        words, kinds = self.corpora[corpus].words, self.corpora[corpus].kinds
        say(f"embed {len(words):,} candidates ({corpus}) in {len(templates)} template(s)")
        is_adjective = [kind == "adjective" for kind in kinds]
        embeddings = torch.empty(len(words), self.encoder.model.config.projection_dim)
        for wanted, used in ((False, templates), (True, adjective_templates)):
            places = [place for place, adjective in enumerate(is_adjective) if adjective is wanted]
            if places:
                embeddings[places] = self.texts([words[place] for place in places], used)
        return Candidates(list(words), list(kinds), embeddings)


def judge(
    method: str,
    images: Tensor,
    text: Tensor,
    negatives: Tensor | None = None,
    embed_pairs: Any = None,
    **settings: Any,
) -> Tensor:
    """OOD-ness of image embeddings by a method that reads labels and negative labels."""
    inputs = method_inputs(images, text, negative_embeddings=negatives, embed_pairs=embed_pairs)
    return METHODS[method].score(inputs, **settings)


# --- Real embeddings -------------------------------------------------------------------------------------------------

ALL = "NegLabel, all candidates but names and kinds of labels"


def real(data_root: Path) -> tuple[Results, dict[str, Any]]:
    """CIFAR-10 against product photos, and five of its classes against the others, in ten draws."""
    results: Results = {}
    facts: dict[str, Any] = {}
    whole = load_suite_data("cifar10-features", data_root=data_root)
    split = [load_suite_data("cifar10-features-split", data_root=data_root, seed=seed) for seed in range(DRAWS)]
    for data, group in [(whole, "far"), *((one, "near") for one in split)]:
        _judge_real(results, facts, data, group)
    return results, facts


def _judge_real(results: Results, facts: dict[str, Any], data: SuiteData, group: str) -> None:
    features = data.suite.text_features
    assert features is not None and data.text_bank is not None
    encoder = PrecomputedEncoder(data.text_bank, features.model, ["a {}"], features.logit_scale)
    ood = next(one for one in data.ood if one.group == group)
    images = torch.from_numpy(np.concatenate([data.id.embeddings, ood.embeddings]))
    is_id = torch.arange(len(images)) < len(data.id)
    # What stands for a label by another name, such as "boat" for "ship", is in the bank under that of the label alone.
    others = sorted(set(ood.class_names or ()))
    corpus = [name for name in data.text_bank if name not in data.labels]
    without = [name for name in corpus if name not in others]
    related = ("id_names", "synonyms", "hyponyms")
    first = f"{group}, bank" not in facts

    def score(
        question: str, variant: str, corpus: list[str] = corpus, filters: Sequence[str] = (), **settings: Any
    ) -> tuple[NegativeLabels, Tensor]:
        mining: dict[str, Any] = {name: settings.pop(name) for name in ("fraction", "quantile") if name in settings}
        negatives = {"corpus": corpus, "filters": filters, **mining}
        detector = OODDetector(encoder, data.labels, "neglabel", negatives=negatives, **settings)
        scores = detector.score(images)
        add(results, question, variant, group, scores, is_id, ~is_id)
        assert detector.negatives is not None
        return detector.negatives, scores

    bank, scores = score("methods", "NegLabel")
    intervals = {"NegLabel": _interval(scores, is_id)}
    _, scores = score("methods", "NegLabel, without names and kinds of labels", filters=related)
    intervals["NegLabel, without names and kinds of labels"] = _interval(scores, is_id)
    _, scores = score("methods", ALL, filters=related, fraction=1.0)
    intervals[ALL] = _interval(scores, is_id)
    for name in WITHOUT:
        scores = OODDetector(encoder, data.labels, name).score(images)
        add(results, "methods", METHODS[name].title, group, scores, is_id, ~is_id)
        intervals[METHODS[name].title] = _interval(scores, is_id)
    for fraction in FRACTIONS:
        score("fraction", f"{fraction:g}", fraction=fraction)
        filtered, _ = score("fraction, filtered", f"{fraction:g}", filters=related, fraction=fraction)
        if group == "near":
            score("fraction, no OOD names", f"{fraction:g}", corpus=without, filters=related, fraction=fraction)
    for quantile in QUANTILES:
        score("quantile", f"{quantile:g}", quantile=quantile)
        score("quantile, fraction 0.5", f"{quantile:g}", quantile=quantile, filters=related, fraction=0.5)
    for temperature in TEMPERATURES:
        score("temperature", f"{temperature:g}", temperature=temperature)
    for groups in GROUPS:
        score("groups", f"{groups}", num_groups=groups)
        score("groups, fraction 1", f"{groups}", num_groups=groups, filters=related, fraction=1.0)
    if first:
        facts[f"{group}, bank"] = bank.report
        facts[f"{group}, filtered"] = filtered.report
        facts[f"{group}, first"] = bank.labels[:8]
        facts[f"{group}, images"] = [int(is_id.sum()), int((~is_id).sum())]
        facts[f"{group}, intervals"] = intervals


def _interval(scores: Tensor, is_id: Tensor) -> str:
    interval = bootstrap_interval(auroc, scores[is_id].numpy(), scores[~is_id].numpy())
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


# --- Emoji -----------------------------------------------------------------------------------------------------------


def read_captions(data_root: Path) -> list[dict[str, str]]:
    """What each drawing shows."""
    with (data_root / EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Drawings:
    """All drawings of some styles: what they show, and their embeddings."""

    def __init__(self, data_root: Path, encoder: DualEncoder, styles: Sequence[str]) -> None:
        folder = data_root / EMOJI
        self.all_rows = read_captions(data_root)
        self.rows = [row for row in self.all_rows if row["style"] in styles]
        self.place = {row["image"]: place for place, row in enumerate(self.rows)}
        say(f"embed {len(self.rows):,} drawings")
        features = extract_features([folder / row["image"] for row in self.rows], encoder)
        assert not features.skipped, features.skipped
        self.embeddings = features.embeddings


def emoji(data_root: Path) -> tuple[Results, dict[str, Any]]:
    """The draws of the suites emoji and emoji-openmoji."""
    encoder = DualEncoder.from_pretrained()
    words = Words(encoder)
    drawings = Drawings(data_root, encoder, ("twemoji", "openmoji"))
    results: Results = {}
    facts: dict[str, Any] = {name: defaultdict(list) for name in ("dropped", "accuracy", "saturated")}
    for suite, style in (("emoji", "Twemoji"), ("emoji-openmoji", "OpenMoji")):
        for seed in range(DRAWS):
            start = time.perf_counter()
            data = load_suite_data(suite, data_root=data_root, seed=seed)
            if "mined" not in facts:
                _check_detectors(facts, data, words, drawings)
            _judge_draw(results, facts, data, style, words, drawings)
            say(f"{style}, draw {seed + 1} of {DRAWS}: {time.perf_counter() - start:.0f} s")
    facts["dropped"] = {name: round(statistics.mean(counts)) for name, counts in facts["dropped"].items()}
    return results, facts


def judge_by(method: str, images: Tensor, labels: Sequence[str], words: Words, wording: str = "default") -> Tensor:
    """OOD-ness by NegLabel, CSP or NegRefine, mined as the method does by default."""
    text = words.labels(labels, wording)
    mining = dict(METHODS[method].mining)
    candidates = words.corpus(mining.pop("corpus", "wordnet"), wording)
    candidates, _ = candidates.filtered(labels, mining.pop("filters", ()))
    negatives = candidates.mine(text, **mining)
    return judge(method, images, text, negatives.embeddings, words.pairs(labels, negatives.words, wording))


def _check_detectors(facts: dict[str, Any], data: SuiteData, words: Words, drawings: Drawings) -> None:
    """Compare with detectors, which read all candidates from the cache, and find facts on a first bank."""
    images, _ = find_images(data, drawings)
    images = images[:: len(images) // 20]
    for method in ("neglabel", "negrefine"):
        detector = OODDetector(words.encoder, data.labels, method)
        assert torch.allclose(detector.score(images), judge_by(method, images, data.labels, words), atol=1e-4)
        if method == "neglabel":
            bank = detector.negatives
            assert bank is not None
            facts["mined"] = bank.report
            facts["first"] = bank.labels[:8]
            facts["known_words"] = _known_words(drawings, words.corpus("wordnet").words, bank.labels)


def _judge_draw(
    results: Results, facts: dict[str, Any], data: SuiteData, style: str, words: Words, drawings: Drawings
) -> None:
    labels = data.labels
    parts = [("id", data.id), *((one.group, one) for one in data.ood)]
    images, masks = find_images(data, drawings)
    text, wordnet = words.labels(labels), words.corpus("wordnet")

    def keep(question: str, variant: str, scores: Tensor, groups: Sequence[str] = ("near", "far")) -> None:
        for group in groups:
            add(results, f"{style}: {question}", variant, group, scores, masks["id"], masks[group])

    def by_negatives(negatives: Candidates, **settings: Any) -> Tensor:
        return judge("neglabel", images, text, negatives.embeddings, **settings)

    for wording, title in WORDINGS.items():
        for method, name in NEGATIVES.items():
            # Pairs in several templates take longer than all the rest, and CSP has no adjectives.
            if (wording == "adjectives" and method != "neglabel") or (wording == "all" and method == "negrefine"):
                continue
            scores = judge_by(method, images, labels, words, wording)
            keep("methods", f"{name}{title}", scores)
            if method == "neglabel":
                share = float((scores[masks["id"]] == 1).double().mean())
                facts["saturated"][f"{style}, {wording}"].append(round(100 * share, 3))
        accuracy = id_accuracy_of(images[masks["id"]], words.labels(labels, wording), data)
        facts["accuracy"][f"{style}, {wording}"].append(accuracy)
    for name in (*WITHOUT, *CLIPN_METHODS):
        keep("methods", METHODS[name].title, OODDetector(words.encoder, labels, name).score(images))

    # Words of the domain that name no OOD drawing: for near OOD those of far OOD, and the other way round.
    shown = {group: list(dict.fromkeys(one.class_names or ())) for group, one in parts}
    mined = wordnet.mine(text)
    for group, other in (("near", "far"), ("far", "near")):
        known = set(labels) | set(shown[group])
        vocabulary = words.names([name for name in shown[other] if name not in known])
        for fraction in (FRACTION, 1.0):
            negatives = vocabulary.mine(text, fraction=fraction)
            keep("vocabulary", f"emoji names, fraction {fraction:g}", by_negatives(negatives), [group])
        both = torch.cat([mined.embeddings, vocabulary.embeddings])
        keep("vocabulary", "WordNet and all emoji names", judge("neglabel", images, text, both), [group])
        leak = words.names([name for name in shown[group] if name not in labels])
        keep("vocabulary", "the names of the OOD drawings (a leak)", by_negatives(leak), [group])

    corpora = {
        "wordnet-nouns": wordnet.of_kinds("noun"),
        "wordnet-adjectives": wordnet.of_kinds("adjective"),
        "wordnet": wordnet,
        "csp": words.corpus("csp"),
    }
    for name, candidates in corpora.items():
        keep("corpus", name, by_negatives(candidates.mine(text)))
    if style != "Twemoji":
        return
    for fraction in FRACTIONS:
        keep("fraction", f"{fraction:g}", by_negatives(wordnet.mine(text, fraction=fraction)))
    for temperature in TEMPERATURES:
        keep("temperature", f"{temperature:g}", by_negatives(mined, temperature=temperature))
    for groups in GROUPS:
        keep("groups", f"{groups}", by_negatives(mined, num_groups=groups))
    for quantile in QUANTILES:
        keep("quantile", f"{quantile:g}", by_negatives(wordnet.mine(text, quantile=quantile)))
    related = METHODS["negrefine"].mining["filters"]
    chosen = {"none": (), **{name: (name,) for name in FILTERS}, ", ".join(related): related}
    for title, names in chosen.items():
        candidates, dropped = wordnet.filtered(labels, names)
        keep("filters", title, by_negatives(candidates.mine(text)))
        facts["dropped"][title].append(dropped)
    nearest = wordnet.nearest(text)
    for cosine in (0.95, 0.8, 0.6):
        keep("filters", f"max_similarity {cosine}", by_negatives(wordnet.mine(text, max_similarity=cosine)))
        facts["dropped"][f"max_similarity {cosine}"].append(int((nearest > cosine).sum()))


def find_images(data: SuiteData, drawings: Drawings) -> tuple[Tensor, dict[str, Tensor]]:
    """The embeddings of all images of a draw, and which of them are ID, near and far OOD."""
    parts = [("id", data.id), *((one.group, one) for one in data.ood)]
    places = [drawings.place[_image(name)] for _, one in parts for name in one.names]
    group_of = np.array([group for group, one in parts for _ in one.names])
    return drawings.embeddings[torch.tensor(places)], {
        group: torch.from_numpy(group_of == group) for group, _ in parts
    }


def id_accuracy_of(images: Tensor, text: Tensor, data: SuiteData) -> float:
    """In percent, how many ID images are the nearest to their own label."""
    assert data.id.labels is not None
    return round(100 * id_accuracy((images @ text.T).argmax(dim=1).numpy(), data.id.labels), 3)


def _image(name: str) -> str:
    """The path of a drawing from the folder of the table."""
    return "/".join(name.split("/")[-2:])


def _known_words(drawings: Drawings, candidates: Sequence[str], mined: Sequence[str]) -> list[int]:
    """How many candidates, and mined ones, have only words that occur in the captions the model was trained on."""
    seen = {
        word
        for row in drawings.all_rows
        for text in (row["name"], row["keywords"])
        for word in text.lower().replace(";", " ").replace("-", " ").split()
    }
    known = [[set(word.lower().replace("-", " ").split()) <= seen for word in some] for some in (candidates, mined)]
    return [number for some in known for number in (sum(some), len(some))]


# --- Styles ----------------------------------------------------------------------------------------------------------


def styles(data_root: Path) -> tuple[Results, dict[str, Any]]:
    """The same concepts in every style."""
    encoder = DualEncoder.from_pretrained()
    words = Words(encoder)
    styles_there = {row["style"] for row in read_captions(data_root)}
    names = sorted(styles_there - {*SMALL_STYLES}, key=lambda one: (one in HELD_OUT, one))
    drawings = Drawings(data_root, encoder, names)
    by_style: dict[str, dict[str, int]] = {name: {} for name in names}
    category: dict[str, str] = {}
    for place, row in enumerate(drawings.rows):
        by_style[row["style"]][row["name"]] = place
        category[row["name"]] = row["category"]
    common = sorted(set.intersection(*(set(one) for one in by_style.values())))
    candidates = [name for name in common if category[name] in ID_CATEGORIES]
    rest = [name for name in category if name not in set(common)]
    order = torch.tensor([[by_style[style][name] for name in common] for style in names])  # (styles, concepts)
    images = drawings.embeddings[order.flatten()]
    results: Results = {}
    rejected: dict[str, list[float]] = defaultdict(list)
    for seed in range(DRAWS):
        start = time.perf_counter()
        labels = sorted(random.Random(seed).sample(candidates, NUM_LABELS))
        is_id = torch.tensor([name in set(labels) for name in common])
        is_near = torch.tensor([category[name] in ID_CATEGORIES for name in common]) & ~is_id
        is_far = ~is_id & ~is_near
        for method, scores in _style_scores(words, labels, images, rest):
            by = scores.reshape(len(names), len(common))
            for style, own in zip(names, by, strict=True):
                for group, is_ood in (("near", is_near), ("far", is_far)):
                    add(results, method, style, group, own, is_id, is_ood)
            shares = {}
            for calibrated, own in zip(names, by, strict=True):
                threshold = threshold_at(own[is_id].numpy(), 0.95)
                for style, other in zip(names, by, strict=True):
                    share = (other[is_id].double() > threshold).double().mean()
                    shares[calibrated, style] = round(100 * float(share), 3)
            for calibrated in CALIBRATED:
                for style in names:
                    rejected[f"{method} / {calibrated} / {style}"].append(shares[calibrated, style])
            for title, kinds in TRANSFERS.items():
                of_title = [
                    share
                    for (one, two), share in shares.items()
                    if one != two and (one in HELD_OUT, two in HELD_OUT) == kinds
                ]
                rejected[f"{method} / {title}"].append(round(statistics.mean(of_title), 3))
        say(f"styles, draw {seed + 1} of {DRAWS}: {time.perf_counter() - start:.0f} s")
    facts = {
        "styles": names,
        "concepts": [len(common), len(candidates), len(common) - len(candidates), len(rest)],
        "rejected": dict(rejected),
    }
    return results, facts


def _style_scores(
    words: Words, labels: list[str], images: Tensor, rest: Sequence[str]
) -> Iterable[tuple[str, Tensor]]:
    for method in ("neglabel", "csp"):
        yield NEGATIVES[method], judge_by(method, images, labels, words)
    vocabulary = words.names(rest)
    yield "NegLabel, emoji names", judge("neglabel", images, words.labels(labels), vocabulary.embeddings)
    for name in ("mcm", "max_logit", "energy", *CLIPN_METHODS):
        yield METHODS[name].title, OODDetector(words.encoder, labels, name).score(images)


# --- Pages and figures -----------------------------------------------------------------------------------------------

CONVENTION = (
    "AUROC and FPR95 in percent. FPR95 is the share of OOD images accepted when 95 % of the ID images are kept (*ID "
    "positive*, exact rule). "
)
OVER_DRAWS = "Mean ± standard deviation over ten draws of labels, which share their images."


def page_of_real(results: Results, facts: Mapping[str, Any]) -> str:
    """Tables of real embeddings."""
    groups = {"far": "product photos", "near": "other five classes"}
    far, near = facts["far, images"], facts["near, images"]
    bank, filtered = facts["far, bank"], facts["far, filtered"]
    intervals = facts["far, intervals"]
    related = filtered["candidates"] - filtered["mined"]
    lines = [
        "# Real embeddings",
        "CLIP ViT-B/32 (OpenAI), template `a {}`. ID: "
        f"{far[0]:,} test images of CIFAR-10 against {far[1]:,} product photos (one draw), and five of its classes "
        f"against the other five in ten draws (the first has {near[0]} and {near[1]} images), as in the suites "
        "`cifar10-features` and `cifar10-features-split`. Candidates are the names of LVIS that stand for no label: "
        f"{bank['candidates']:,}, of which {bank['mined']} are mined at the defaults; the most distant first: "
        f"{', '.join(facts['far, first'])}. Without names, synonyms and kinds of labels there are {related} fewer.",
        CONVENTION + OVER_DRAWS,
        "## Methods, at the defaults of their papers",
        results_table(results, "methods", "method", groups),
        "AUROC against product photos with the 95 % bootstrap interval over images: "
        + "; ".join(f"{name} {interval}" for name, interval in intervals.items())
        + ".",
        "The row with all candidates is the best of the fractions below, which was found on these very images.",
        "Paired differences over the ten draws, AUROC against the other five classes, with the 95 % interval of "
        "Student's t:",
        _differences(results, "methods", "NegLabel", {"near": "other five classes"}),
        _differences(results, "methods", ALL, {"near": "other five classes"}),
    ]
    titles = {
        "fraction": "## Number of negatives: `fraction`\n\nBy default there are as many groups as there are hundreds "
        "of negative labels, one at least.",
        "fraction, filtered": "The same without names, synonyms and kinds of the labels (`filters`):",
        "fraction, no OOD names": "The same, and without the names of the five other classes, too:",
        "temperature": "## Temperature",
        "groups": "## Groups",
        "groups, fraction 1": "The same with all candidates but names, synonyms and kinds of labels:",
        "quantile": "## Quantile",
        "quantile, fraction 0.5": "The same with half of the candidates but names, synonyms and kinds of labels:",
    }
    for question, title in titles.items():
        shown = {"near": groups["near"]} if question == "fraction, no OOD names" else groups
        lines += [title, results_table(results, question, question.split(",")[0], shown)]
    return "\n\n".join(lines) + "\n"


def page_of_emoji(results: Results, facts: Mapping[str, Any]) -> str:
    """Tables of the emoji suites."""
    groups = {"near": "near", "far": "far"}
    known, total, known_mined, mined = facts["known_words"]
    lines = [
        "# Emoji",
        "clipn-tiny on the draws of the suites `emoji` (Twemoji) and `emoji-openmoji` (OpenMoji): 50 labels, near OOD "
        f"other concepts of their categories, far OOD other categories. WordNet has {facts['mined']['candidates']:,} "
        f"candidates, of which {facts['mined']['mined']:,} are mined at the defaults; of the first draw, the most "
        f"distant first: {', '.join(facts['first'])}. Only {known:,} of the {total:,} candidates, and "
        f"{known_mined:,} of the {mined:,} mined ones, consist of words that occur in the captions that clipn-tiny "
        "was trained on.",
        CONVENTION + OVER_DRAWS,
    ]
    for style in ("Twemoji", "OpenMoji"):
        accuracy, saturated = (
            {wording: spread(facts[fact][f"{style}, {wording}"]) for wording in WORDINGS}
            for fact in ("accuracy", "saturated")
        )
        lines += [
            f"## {style}: methods, at their defaults",
            "NegLabel, CSP and NegRefine put labels and nouns into the first template that clipn-tiny brings along, "
            "`{}`, and adjectives into `This is a {} photo`; the paper's template is `The nice {}.`. All other "
            f"methods average over the five templates of the model. The nearest label is the right one of "
            f"{accuracy['default']} % of the ID drawings in the first template, {accuracy['all']} % in all, "
            f"{accuracy['paper']} % in the paper's. The score of NegLabel is exactly 1, the highest there is in "
            f"float32, for {saturated['default']} % of the ID drawings; in the paper's template it is for "
            f"{saturated['paper']} %, so that a threshold that keeps 95 % of them keeps everything there. *Adjectives "
            "as nouns*: these in the first template of the model, too. NegRefine in all templates is left out: it "
            "embeds some ten thousand pairs of texts for each draw.",
            results_table(results, f"{style}: methods", "method", groups),
            "Paired differences in AUROC, with the 95 % interval of Student's t over the draws:",
            *(_differences(results, f"{style}: methods", name, groups) for name in NEGATIVES.values()),
            f"## {style}: words of the domain",
            "Negative labels for near OOD are names of emoji of the categories of far OOD, and the other way round, "
            "so that no name of an OOD drawing is among them, but in the row that says so.",
            results_table(results, f"{style}: vocabulary", "negative labels", groups),
            f"## {style}: corpus",
            "Mined alike, at quantile 0.95 and fraction 0.15.",
            results_table(results, f"{style}: corpus", "corpus", groups),
        ]
    lines += [
        "## Twemoji: filters",
        "Of the corpus `wordnet`; how many candidates each drops, mean over the draws. Filters drop before, "
        "`max_similarity` after the share of the candidates is taken.",
    ]
    rows = []
    for (question, variant, group), cell in results.items():
        if question == "Twemoji: filters" and group == "near":
            far = results[question, variant, "far"]
            cells = [spread(one[metric]) for one in (cell, far) for metric in ("auroc", "fpr95")]
            rows.append([f"`{variant}`", f"{facts['dropped'][variant]:,}", *cells])
    header = ["filters", "dropped", "near, AUROC ↑", "near, FPR95 ↓", "far, AUROC ↑", "far, FPR95 ↓"]
    lines.append(table(header, rows))
    for question in ("fraction", "temperature", "groups", "quantile"):
        lines += [f"## Twemoji: {question}", results_table(results, f"Twemoji: {question}", question, groups)]
    return "\n\n".join(lines) + "\n"


def page_of_styles(results: Results, facts: Mapping[str, Any]) -> str:
    """Tables by style."""
    names = facts["styles"]
    num_common, num_id, num_far, num_rest = facts["concepts"]
    methods = list(dict.fromkeys(method for method, _, _ in results))
    lines = [
        "# Styles",
        f"clipn-tiny on the {num_common} concepts that all of thirteen art styles have (`{SMALL_STYLES[0]}` has too "
        f"few): ten draws of 50 labels among the {num_id} of the categories animals & nature, food & drink and "
        f"objects; near OOD are the others of these, far OOD the {num_far} concepts of other categories. The same in "
        f"every style, so that styles alone differ. {', '.join(HELD_OUT)} were never trained on; the other nine "
        "were, all of their concepts, so that results on them are those of training data. NegLabel and CSP are at "
        f"their defaults; *emoji names* are the {num_rest} names of concepts that are neither ID nor OOD in any draw, "
        "taken as they are. NegRefine, which embeds some hundred thousand pairs for each draw, is left out.",
        CONVENTION + OVER_DRAWS,
    ]
    for metric, title in (("auroc", "AUROC ↑"), ("fpr95", "FPR95 ↓")):
        for group in ("near", "far"):
            rows = [
                [_style_name(style), *(spread(results[method, style, group][metric]) for method in methods)]
                for style in names
            ]
            lines += [f"## {group.capitalize()} OOD, {title}", table(["style", *methods], rows)]
    for calibrated in CALIBRATED:
        lines += [
            f"## One threshold, calibrated on {calibrated}",
            f"It keeps 95 % of the ID images in {calibrated}. Share of the ID images of each style that it rejects, "
            "in percent:",
            table(
                ["style", *methods],
                [
                    [
                        _style_name(style),
                        *(spread(facts["rejected"][f"{method} / {calibrated} / {style}"]) for method in methods),
                    ]
                    for style in names
                ],
            ),
        ]
    lines += ["## One threshold, calibrated on each style in turn"]
    lines += ["Share of the ID images of all *other* styles that is rejected, mean over the styles, in percent:"]
    rows = []
    for title in TRANSFERS:
        rows.append([title, *(spread(facts["rejected"][f"{method} / {title}"]) for method in methods)])
    lines.append(table(["calibrated → tested", *methods], rows))
    return "\n\n".join(lines) + "\n"


def _style_name(style: str) -> str:
    return f"{style} (held out)" if style in HELD_OUT else style


def _differences(results: Results, question: str, base: str, groups: Mapping[str, str]) -> str:
    rows = []
    for variant in dict.fromkeys(variant for asked, variant, _ in results if asked == question):
        if variant != base:
            cells = [
                difference(results[question, base, group]["auroc"], results[question, variant, group]["auroc"])
                for group in groups
            ]
            rows.append([f"{base} − {variant}", *cells])
    return table(["difference", *groups.values()], rows)


def draw_knob(
    x_label: str, panels: Mapping[str, Mapping[str, tuple[Results, str, str]]], levels: Any, log: bool
) -> Any:
    """AUROC over one knob, one panel per data set, with bands of one standard deviation over the draws."""
    figure, all_axes = _figure(len(panels), 3.3, 3.1)
    handles: dict[str, Any] = {}
    order = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        for label, (results, question, group) in curves.items():
            index = order.index(label)
            points = [
                (float(variant), cell["auroc"])
                for (asked, variant, of), cell in results.items()
                if asked == question and of == group
            ]
            x = [value for value, _ in points]
            mean = np.array([statistics.mean(values) for _, values in points])
            style = {"color": COLORS[index], "linestyle": LINES[index], "marker": MARKERS[index], "markersize": 4}
            handles[label] = axes.plot(x, mean, linewidth=1.6, **style)[0]
            if len(points[0][1]) > 1:
                deviation = np.array([statistics.stdev(values) for _, values in points])
                axes.fill_between(x, mean - deviation, mean + deviation, color=COLORS[index], alpha=0.15, linewidth=0)
        for index, (label, value) in enumerate(levels[title].items()):
            color = (FADED, INK)[index % 2]
            handles[label] = axes.axhline(
                value, color=color, linewidth=1.1, linestyle=((0, (1, 2)), (0, (5, 3)))[index % 2]
            )
        if log:
            axes.set_xscale("log")
        axes.set_title(title, fontsize=9, color=INK, loc="left", fontweight="bold")
        axes.set_xlabel(x_label, fontsize=9, color=INK)
    all_axes[0].set_ylabel("AUROC, %", fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_styles(values: Mapping[str, Mapping[str, Mapping[str, list[float]]]], y_label: str) -> Any:
    """One panel for each group: a point per method and style, with one standard deviation over the draws."""
    figure, all_axes = _figure(1, 9.2, 2.7 * len(values), rows=len(values))
    handles: dict[str, Any] = {}
    for axes, (title, by_method) in zip(all_axes, values.items(), strict=True):
        for index, (method, by_style) in enumerate(by_method.items()):
            x = np.arange(len(by_style)) + 0.09 * (index - (len(by_method) - 1) / 2)
            mean = [statistics.mean(draws) for draws in by_style.values()]
            deviation = [statistics.stdev(draws) for draws in by_style.values()]
            handles[method] = axes.errorbar(
                x, mean, yerr=deviation, fmt=MARKERS[index], color=COLORS[index], markersize=4.5, elinewidth=0.8
            )
        names = list(by_style)
        first = next(place for place, style in enumerate(names) if style in HELD_OUT)
        axes.axvline(first - 0.5, color=FADED, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20, ha="right")
        axes.set_title(f"{title}; held-out styles right of the line", fontsize=9, color=INK, loc="left")
        axes.set_ylabel(y_label, fontsize=9, color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in all_axes:
        axes.tick_params(labelsize=8, colors=FADED)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(RULE)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure, all_axes


def draw_all(results: Mapping[str, Results], facts: Mapping[str, Any], output: Path) -> None:
    """Write all figures of the parts that were measured."""
    if "real" in results and "emoji" in results:
        for name, x_label, log in (
            ("fraction", "share of the candidates that is mined", False),
            ("temperature", "temperature", True),
            ("groups", "groups", True),
            ("quantile", "quantile over the labels", False),
        ):
            on_real, on_emoji = results["real"], results["emoji"]
            panels: dict[str, dict[str, tuple[Results, str, str]]] = {}
            levels = {}
            for group, title in (("far", "CIFAR-10, product photos"), ("near", "CIFAR-10, five classes")):
                panels[title] = {"NegLabel": (on_real, name, group)}
                if name == "fraction":
                    panels[title]["NegLabel, no names and kinds of labels"] = (on_real, "fraction, filtered", group)
                levels[title] = _levels(on_real, "methods", group)
            for group in ("far", "near"):
                title = f"Twemoji, {group}"
                panels[title] = {"NegLabel": (on_emoji, f"Twemoji: {name}", group)}
                levels[title] = _levels(on_emoji, "Twemoji: methods", group)
            _save(draw_knob(x_label, panels, levels, log), output / f"{name}.png")
    if "styles" in results:
        on_styles, names = results["styles"], facts["styles"]["styles"]
        methods = list(dict.fromkeys(method for method, _, _ in on_styles))
        values = {
            f"{group.capitalize()} OOD": {
                method: {style: on_styles[method, style, group]["auroc"] for style in names} for method in methods
            }
            for group in ("near", "far")
        }
        _save(draw_styles(values, "AUROC, %"), output / "styles.png")
        rejected = facts["styles"]["rejected"]
        shares = {
            f"Calibrated on {calibrated}": {
                method: {style: rejected[f"{method} / {calibrated} / {style}"] for style in names}
                for method in methods
            }
            for calibrated in CALIBRATED
        }
        _save(draw_styles(shares, "ID images rejected, %"), output / "threshold.png")


def _levels(results: Results, question: str, group: str) -> dict[str, float]:
    return {
        METHODS[name].title: statistics.mean(results[question, METHODS[name].title, group]["auroc"])
        for name in ("mcm", "max_logit")
    }


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


def main(data_root: Path, output: Path, parts: Sequence[str]) -> None:
    """Measure the parts, and write their pages, figures and numbers."""
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    results: dict[str, Results] = {}
    facts: dict[str, Any] = {}
    measure: dict[str, Callable[[Path], tuple[Results, Any]]] = {"real": real, "emoji": emoji, "styles": styles}
    pages: dict[str, Callable[[Results, Any], str]] = {
        "real": page_of_real,
        "emoji": page_of_emoji,
        "styles": page_of_styles,
    }
    for part in parts:
        say(part)
        results[part], facts[part] = measure[part](data_root)
        listed = [[*key, cell["auroc"], cell["fpr95"]] for key, cell in results[part].items()]
        with atomic_path(output / f"{part}.json") as partial:
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in listed)
            about = json.dumps(facts[part], ensure_ascii=False)
            partial.write_text(f'{{"facts": {about},\n"results": [\n{rows}\n]}}\n', encoding="utf-8")
        with atomic_path(output / f"{part}.md") as partial:
            partial.write_text(pages[part](results[part], facts[part]), encoding="utf-8")
    # Parts may be measured one after the other.
    for part in PARTS:
        file = output / f"{part}.json"
        if part not in results and file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            facts[part] = content["facts"]
            results[part] = {
                (question, variant, group): {"auroc": of_auroc, "fpr95": of_fpr95}
                for question, variant, group, of_auroc, of_fpr95 in content["results"]
            }
    draw_all(results, facts, output)
    say(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of pages, figures and numbers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    main(arguments.data_root, arguments.output, arguments.parts)
