# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A bank of negative labels: their texts and embeddings, and how they were found."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import logging

from ..digests import settings_digest, text_encoder_settings
from ..encoders import ALIGNMENT, DualEncoder, PrecomputedEncoder
from ..feature_cache import bank_file, default_cache_dir
from ..features import cached_class_embeddings
from ..files import atomic_path
from ..negative_settings import ADJECTIVE_TEMPLATES, CORPORA, TEMPLATES
from ..prompts import validate_labels, validate_templates
from .corpus import Corpus, check_texts, first_texts, load_corpus
from .filters import are_labels, check_filters, filter_candidates, same_names, unknown_labels
from .mining import check_share, most_distant, quantile_similarity

logger = logging.get_logger(__name__)

_FORMAT = "clipn_hf negatives 1"
# To be raised whenever other candidates would be chosen by the same settings.
_RULES = 1
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
# What tells text encoders apart but for rounding
_IDENTITY = ("weights", "modules", "config", "adapters", "tokenizer", "max_length")

Encoder = DualEncoder | PrecomputedEncoder


@dataclass(frozen=True, eq=False)
class NegativeLabels:
    """Texts that say what an image may show when it shows none of the labels, and their embeddings.

    [`NegativeLabels.mine`] finds them in a corpus, [`NegativeLabels.from_texts`] takes them as they are given.

    Args:
        labels (`list[str]`): The negative labels, each different.
        embeddings (`torch.Tensor` of shape `(negatives, dim)`): Of the labels in their templates; float32, unit norm,
            on the CPU.
        kinds (`list[str]`): `"noun"`, `"adjective"`, `"compound"` or `"text"` of each.
        mined_for (`list[str]`, *optional*): The labels that they are distant from; None if they were not mined.
        settings (`dict`): How they were found, as JSON knows it.
        report (`dict[str, int]`): How many candidates there were, how many were dropped and why, how many are left.
        model (`dict`): Which text encoder embedded them: `"id"` and `"text_encoder_sha256"`.

    Raises:
        ValueError: There are none, there is not one embedding and one kind for each, or embeddings are no unit
            vectors.
    """

    labels: list[str]
    embeddings: Tensor
    kinds: list[str]
    mined_for: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, int] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate_labels(self.labels, "negatives")
        if self.embeddings.ndim != 2 or not len(self.labels) == len(self.embeddings) == len(self.kinds):
            raise ValueError(
                f"Each negative label needs one embedding and one kind, got {len(self.labels)} labels, embeddings of "
                f"shape {tuple(self.embeddings.shape)} and {len(self.kinds)} kinds."
            )
        if self.embeddings.dtype != torch.float32 or self.embeddings.device.type != "cpu":
            raise ValueError(
                f"Embeddings of negative labels must be float32 on the CPU, got {self.embeddings.dtype} on "
                f"{self.embeddings.device}; convert them."
            )
        # As a norm, NaN fails the comparison, too.
        if not bool(((self.embeddings.norm(dim=-1) - 1).abs() < 1e-3).all()):
            raise ValueError("Embeddings of negative labels must be finite and of norm 1; normalise them.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"NegativeLabels({len(self)} from {self.settings.get('corpus')!r}: {first_texts(self.labels)})"

    @staticmethod
    def mine(
        model: Encoder | str | os.PathLike[str],
        labels: Sequence[str],
        corpus: Any = "wordnet",
        *,
        templates: Sequence[str] | None = None,
        adjective_templates: Sequence[str] | None = None,
        quantile: float = 0.95,
        fraction: float = 0.15,
        filters: Sequence[str] = (),
        max_similarity: float | None = None,
        max_candidates: int | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        use_cache: bool = True,
        progress: bool = True,
    ) -> "NegativeLabels":
        """Choose from a corpus what is the most distant from the labels (NegLabel, arXiv 2403.20078, section 3.1).

        Each kind of candidates is mined by itself, as [`~clipn_hf.negatives.mine_negative_labels`] describes. The
        embeddings of the corpus are kept on disk, so that mining for other labels takes seconds, and so is the
        result, which is read into memory only where it is used.

        The setting of the paper drops duplicates and nothing else, so that labels and their kinds may be among the
        negative labels if the fraction is large; a warning says so.

        Args:
            model ([`DualEncoder`], [`PrecomputedEncoder`], `str` or `os.PathLike`):
                Embeds the texts; or the Hub id or folder of a model. A [`PrecomputedEncoder`] must have all of them.
            labels (`Sequence[str]`): What images may show.
            corpus (*optional*, defaults to `"wordnet"`): As for [`~clipn_hf.negatives.load_corpus`].
            templates (`Sequence[str]`, *optional*, defaults to `("The nice {}.",)`):
                Of labels and candidates that are no adjectives. By default the first of those that the model brings
                along, where it does, as a CLIPN. A [`PrecomputedEncoder`] has its own.
            adjective_templates (`Sequence[str]`, *optional*, defaults to `("This is a {} photo",)`): Of adjectives.
            quantile (`float`, *optional*, defaults to 0.95): As for [`~clipn_hf.negatives.mine_negative_labels`].
            fraction (`float`, *optional*, defaults to 0.15): As for [`~clipn_hf.negatives.mine_negative_labels`].
            filters (`Sequence[str]`, *optional*):
                Which candidates to drop before, as for [`~clipn_hf.negatives.filter_candidates`].
            max_similarity (`float`, *optional*): Choose no candidates whose cosine with any label is higher. The
                fraction counts them.
            max_candidates (`int`, *optional*): As for [`~clipn_hf.negatives.load_corpus`].
            seed (`int`, *optional*, defaults to 0): As for [`~clipn_hf.negatives.load_corpus`].
            cache_dir (`str` or `os.PathLike`, *optional*):
                Folder of the cache, by default that of [`~clipn_hf.feature_cache.default_cache_dir`].
            use_cache (`bool`, *optional*, defaults to `True`): Whether to read and write the cache.
            progress (`bool`, *optional*, defaults to `True`): Whether to show bars, if there is a terminal.

        Returns:
            [`NegativeLabels`]: Nouns before adjectives or compounds, of each kind the most distant first.

        Raises:
            OSError: There is no such corpus or model.
            TypeError: `model`, `labels`, `corpus`, `filters` or a number is of another type.
            ValueError:
                The corpus is empty or has nothing but labels, nothing is left of it, a filter is unknown, a number is
                out of range, or a [`PrecomputedEncoder`] lacks a text or has other templates.

        Example:

        ```python
        >>> from clipn_hf import DualEncoder, NegativeLabels
        >>> encoder = DualEncoder.from_pretrained()  # doctest: +SKIP
        >>> negatives = NegativeLabels.mine(encoder, ["cat", "dog"], filters=["hyponyms"])  # doctest: +SKIP
        >>> negatives.save("negatives.safetensors")  # doctest: +SKIP

        ```
        """
        check_share("quantile", quantile)
        check_share("fraction", fraction)
        if max_similarity is not None:
            _check_cosine(max_similarity)
        labels = validate_labels(labels)
        filters = check_filters(filters)
        candidates = load_corpus(corpus, seed, max_candidates)
        if are_labels(candidates.words, labels):
            raise ValueError(
                f"The corpus {candidates.name!r} has nothing but labels ({first_texts(candidates.words)}); give "
                'candidates that are none, or use corpus="wordnet".'
            )
        encoder = _as_encoder(model)
        own_templates, own_adjective_templates = _templates(encoder, templates, adjective_templates)
        settings: dict[str, Any] = {
            "corpus": candidates.name,
            "corpus_sha256": candidates.sha256,
            "templates": own_templates,
            "adjective_templates": own_adjective_templates,
            "quantile": float(quantile),
            "fraction": float(fraction),
            "filters": list(filters),
            "max_similarity": None if max_similarity is None else float(max_similarity),
            "max_candidates": None if max_candidates is None else int(max_candidates),
            "seed": int(seed),
        }
        _warn_of_unknown(labels, filters)
        file = None
        if use_cache and isinstance(encoder, DualEncoder):
            folder = default_cache_dir() if cache_dir is None else cache_dir
            encoder_settings = _encoder_settings(encoder)
            key = settings_digest(
                {"format": _FORMAT, "rules": _RULES, "encoder": encoder_settings, "labels": labels, "mining": settings}
            )
            file = bank_file(folder, key)
            if (bank := _read_cached(file, key)) is not None:
                _warn_of_labels(bank)
                return bank
        bank = _mine(encoder, labels, candidates, settings, cache_dir, use_cache, progress)
        _warn_of_labels(bank)
        if file is not None and isinstance(encoder, DualEncoder):
            record = {
                "model": bank.model["id"] or type(encoder.model).__name__,
                "settings": {**encoder_settings, "labels": labels, **settings},
            }
            return _write_cached(bank, file, key, record)
        return bank

    @staticmethod
    def from_texts(
        model: Encoder | str | os.PathLike[str],
        texts: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        templates: Sequence[str] | None = None,
    ) -> "NegativeLabels":
        """Take texts as they are, such as those that a captioner or a language model proposes (ZOC, EOE).

        Args:
            model ([`DualEncoder`], [`PrecomputedEncoder`], `str` or `os.PathLike`): As for [`NegativeLabels.mine`].
            texts (`Sequence[str]`): The negative labels. Of texts that are the same, one is taken.
            labels (`Sequence[str]`, *optional*): What images may show, of which the texts may be none.
            templates (`Sequence[str]`, *optional*): As for [`NegativeLabels.mine`].

        Returns:
            [`NegativeLabels`]: In the order of `texts`.

        Raises:
            OSError: There is no such model.
            TypeError: `model`, `texts` or `labels` is of another type.
            ValueError:
                There are no texts, one is blank or is a label, or a [`PrecomputedEncoder`] lacks one or
                has other templates.

        Example:

        ```python
        >>> from clipn_hf import NegativeLabels
        >>> from clipn_hf.encoders import PrecomputedEncoder
        >>> encoder = PrecomputedEncoder({"cat": [1.0, 0.0], "jellyfish": [0.0, 1.0]}, "my-clip", ["a {}."])
        >>> NegativeLabels.from_texts(encoder, ["jellyfish"], ["cat"])
        NegativeLabels(1 from 'texts': 'jellyfish')

        ```
        """
        texts = check_texts(texts, labels, "texts")
        encoder = _as_encoder(model)
        own_templates, _ = _templates(encoder, templates, None)
        return NegativeLabels(
            labels=texts,
            embeddings=_embed(encoder, texts, own_templates, None, use_cache=False, progress=True, warn=True),
            kinds=["text"] * len(texts),
            settings={"corpus": "texts", "templates": own_templates},
            report={"candidates": len(texts)},
            model=_identity(encoder),
        )

    def renew(
        self,
        model: Encoder | str | os.PathLike[str],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        corpus: Any = None,
        cache_dir: str | os.PathLike[str] | None = None,
        use_cache: bool = True,
        progress: bool = True,
    ) -> "NegativeLabels":
        """Find negative labels for other labels, another model or other templates in the way these were found.

        Args:
            model ([`DualEncoder`], [`PrecomputedEncoder`], `str` or `os.PathLike`): As for [`NegativeLabels.mine`].
            labels (`Sequence[str]`): What images may show.
            templates (`Sequence[str]`, *optional*): By default those of before.
            corpus (*optional*): The same candidates, where they have neither a name nor a file.
            cache_dir (`str` or `os.PathLike`, *optional*): As for [`NegativeLabels.mine`].
            use_cache (`bool`, *optional*, defaults to `True`): As for [`NegativeLabels.mine`].
            progress (`bool`, *optional*, defaults to `True`): As for [`NegativeLabels.mine`].

        Returns:
            [`NegativeLabels`]: Mined if these were mined, else the same texts.

        Raises:
            ValueError: The candidates are gone or have changed; otherwise as before.
        """
        encoder = _as_encoder(model)
        if templates is None and isinstance(encoder, DualEncoder):
            templates = self.settings.get("templates")
        if self.mined_for is None:
            return NegativeLabels.from_texts(encoder, self.labels, labels, templates=templates)
        arguments = {
            name: self.settings[name]
            for name in ("quantile", "fraction", "filters", "max_similarity", "max_candidates", "seed")
        }
        if isinstance(encoder, DualEncoder):
            arguments["adjective_templates"] = self.settings["adjective_templates"]
        try:
            candidates = self.load_candidates(corpus)
        except ValueError as error:
            raise ValueError(
                f"{error} Give the candidates again as `corpus`, or mine by `NegativeLabels.mine`."
            ) from error
        return NegativeLabels.mine(
            encoder,
            labels,
            candidates,
            templates=templates,
            cache_dir=cache_dir,
            use_cache=use_cache,
            progress=progress,
            **arguments,
        )

    def load_candidates(self, corpus: Any = None) -> Corpus:
        """Load the candidates that these were mined from, as `renew` does.

        Args:
            corpus (*optional*): As for `renew`.

        Returns:
            [`~clipn_hf.negatives.Corpus`]

        Raises:
            ValueError: They are gone or have changed, or these were not mined.
        """
        name = self.settings.get("corpus")
        if self.mined_for is None:
            raise ValueError("The negative labels are texts that were given, without candidates.")
        if corpus is None and name not in CORPORA and not os.path.isfile(str(name)):
            raise ValueError(f"The candidates of the negative labels ({name}) are gone.")
        loaded = load_corpus(
            name if corpus is None else corpus, self.settings["seed"], self.settings["max_candidates"]
        )
        if loaded.sha256 != self.settings["corpus_sha256"]:
            raise ValueError(f"The candidates of the negative labels ({name}) are not those of before.")
        return loaded

    def made_with(self, model: Encoder) -> bool:
        """Tell whether a model embeds these texts in the same way, but for rounding."""
        return self.model.get("text_encoder_sha256") == _identity(model)["text_encoder_sha256"]

    def describe(self) -> dict[str, Any]:
        """Say what these are, for records of results and for cards.

        Returns:
            `dict`: Of what JSON knows: `"count"`, `"kinds"` (how many of each), `"corpus"`, `"sha256"` (of the texts),
            `"mined"` (whether they were), `"settings"`, `"report"` and `"model"`.
        """
        return {
            "count": len(self),
            "kinds": dict(Counter(self.kinds)),
            "corpus": self.settings.get("corpus"),
            "sha256": settings_digest({"labels": self.labels}),
            "mined": self.mined_for is not None,
            "settings": self.settings,
            "report": self.report,
            "model": self.model,
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """Put everything into tensors, for a file of a detector.

        Returns:
            `dict[str, torch.Tensor]`: `"embeddings"`, and `"content"`, uint8, which is JSON in UTF-8.
        """
        content = {
            "format": _FORMAT,
            "labels": self.labels,
            "kinds": self.kinds,
            "mined_for": self.mined_for,
            "settings": self.settings,
            "report": self.report,
            "model": self.model,
        }
        encoded = json.dumps(content, ensure_ascii=False).encode()
        return {
            "embeddings": self.embeddings,
            "content": torch.frombuffer(bytearray(encoded), dtype=torch.uint8),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "NegativeLabels":
        """Make again what `to_tensors` put into tensors.

        Args:
            tensors (`Mapping[str, torch.Tensor]`): Others may be among them.

        Returns:
            [`NegativeLabels`]: With the same embeddings, bit for bit.

        Raises:
            ValueError: The tensors are others.
        """
        lacking = [name for name in ("embeddings", "content") if name not in tensors]
        if lacking:
            raise ValueError(f"The tensors of negative labels lack {' and '.join(lacking)}; save them again.")
        try:
            content = json.loads(tensors["content"].numpy().tobytes().decode())
            if content.pop("format") != _FORMAT:
                raise ValueError("their format is another one")
            return NegativeLabels(embeddings=_aligned(tensors["embeddings"]), **content)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The tensors are not those of negative labels that this version can read ({error}); save them again."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the negative labels to a file.

        Args:
            path (`str` or `os.PathLike`): With `.safetensors` everything is written, which `load` reads; with `.txt`
                the texts, one per line.

        Raises:
            OSError: The file cannot be written.
            ValueError: The file has another extension, or a text has several lines or begins with `#`, which text
                files of candidates cannot have.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            _write(self, path, {})
        elif path.suffix == ".txt":
            for label in self.labels:
                if len(label.splitlines()) > 1 or label.lstrip().startswith("#"):
                    raise ValueError(
                        f"The negative label {label!r} cannot be a line of a text file; write a .safetensors file."
                    )
            with atomic_path(path) as incomplete:
                incomplete.write_text("".join(f"{label}\n" for label in self.labels), encoding="utf-8")
        else:
            raise ValueError(f"`path` must end in .safetensors or .txt, got {os.fspath(path)!r}.")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "NegativeLabels":
        """Read what `save` wrote to a .safetensors file; the embeddings stay there until they are used.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            [`NegativeLabels`]: With the same embeddings, bit for bit.

        Raises:
            OSError: There is no such file, or it cannot be read.
            ValueError: It is another file; texts without embeddings need a model.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {os.fspath(path)!r} of negative labels; mine them first.")
        if path.suffix == ".txt":
            raise ValueError(
                f"{path} has texts without embeddings; read its lines and give them to `NegativeLabels.from_texts`, "
                "or load the .safetensors file."
            )
        try:
            bank, _ = _read(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"{path} holds no negative labels that can be read ({error}); mine them again."
            ) from error
        return bank


def _mine(
    encoder: Encoder,
    labels: list[str],
    candidates: Corpus,
    settings: dict[str, Any],
    cache_dir: str | os.PathLike[str] | None,
    use_cache: bool,
    progress: bool,
) -> NegativeLabels:
    left, dropped = filter_candidates(
        candidates.words, candidates.kinds, labels, settings["filters"], progress=progress
    )
    report = {"candidates": len(candidates)}
    if candidates.drawn_from is not None:
        report["drawn_from"] = candidates.drawn_from
    report |= {"duplicates": candidates.duplicates, **dropped}
    embed = partial(_embed, encoder, cache_dir=cache_dir, use_cache=use_cache, progress=progress, warn=False)
    places: dict[str, list[int]] = {}
    for place in left:
        places.setdefault(candidates.kinds[place], []).append(place)
    # Adjectives come last, because they are put into other templates; before, other embeddings can go.
    kinds = sorted(places, key=lambda kind: kind == "adjective")
    # Labels and candidates at once, because each call reads the cache.
    texts = [*labels, *(candidates.words[place] for kind in kinds if kind != "adjective" for place in places[kind])]
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embeddings = embed(list(row_of), settings["templates"])
    id_text = embeddings[: len(labels)].clone()
    found_places: list[int] = []
    found_embeddings: list[Tensor] = []
    too_similar = 0
    for kind in kinds:
        of_kind = places[kind]
        rows = None
        if kind == "adjective":
            del embeddings
            embeddings = embed([candidates.words[place] for place in of_kind], settings["adjective_templates"])
        else:
            # Embeddings are many. What has been chosen is copied alone.
            rows = torch.tensor([row_of[candidates.words[place]] for place in of_kind])
        nearness = quantile_similarity(id_text, embeddings, settings["quantile"], rows, progress=progress)
        chosen = most_distant(nearness, settings["fraction"])
        if settings["max_similarity"] is not None:
            nearest = nearness if settings["quantile"] == 1 else quantile_similarity(id_text, embeddings, 1.0, rows)
            is_similar = nearest > settings["max_similarity"]
            too_similar += int(is_similar.sum())
            # The fraction is of all, as in the published code, which puts these last.
            order = most_distant(nearness, 1.0)
            chosen = order[~is_similar[order]][: len(chosen)]
        found_embeddings.append(embeddings[chosen if rows is None else rows[chosen]])
        found_places += [of_kind[row] for row in chosen.tolist()]
    if settings["max_similarity"] is not None:
        report["max_similarity"] = too_similar
    report["mined"] = len(found_places)
    if not found_places:
        _refuse_nothing(candidates, report, len(left) - too_similar, settings["fraction"])
    return NegativeLabels(
        labels=[candidates.words[place] for place in found_places],
        embeddings=torch.cat(found_embeddings),
        kinds=[candidates.kinds[place] for place in found_places],
        mined_for=labels,
        settings=settings,
        report=report,
        model=_identity(encoder),
    )


def _refuse_nothing(candidates: Corpus, report: Mapping[str, int], left: int, fraction: float) -> None:
    if left:
        raise ValueError(
            f"`fraction` {fraction} of {left} candidates is less than one of any kind; raise it, give more "
            "candidates, or take them as they are by `NegativeLabels.from_texts`."
        )
    reasons = [
        f"{name} dropped {count}"
        for name, count in report.items()
        if name not in ("candidates", "drawn_from", "duplicates", "mined")
    ]
    raise ValueError(
        f"None of the {len(candidates)} candidates in the corpus {candidates.name!r} is left ({', '.join(reasons)}); "
        "leave out filters, raise `max_similarity`, or give other candidates."
    )


def _check_cosine(max_similarity: object) -> None:
    if isinstance(max_similarity, bool) or not isinstance(max_similarity, Real):
        raise TypeError(
            f"`max_similarity` must be a number between -1 and 1, got {type(max_similarity).__name__}: "
            f"{max_similarity!r}."
        )
    if not -1 <= float(max_similarity) <= 1:
        raise ValueError(f"`max_similarity` must be a cosine between -1 and 1, got {max_similarity}.")


def _as_encoder(model: Any) -> Encoder:
    if model is None or isinstance(model, str | os.PathLike):
        return DualEncoder.from_pretrained(model)
    if not isinstance(model, DualEncoder | PrecomputedEncoder):
        raise TypeError(
            f"`model` must be a DualEncoder, a PrecomputedEncoder, or the id or folder of a model, got "
            f"{type(model).__name__}; make one by `DualEncoder(model, processor)`."
        )
    return model


def _templates(
    encoder: Encoder, templates: Sequence[str] | None, adjective_templates: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    if isinstance(encoder, PrecomputedEncoder):
        for given in (templates, adjective_templates):
            encoder.label_templates(given)
        return list(encoder.templates), list(encoder.templates)
    learned = encoder.learned_prompts
    if templates is not None and learned is not None and learned.label_prompts is not None:
        # Contexts that belong to one label each have no place for other texts.
        templates = None if list(templates) == learned.templates else templates
    return (
        validate_templates(encoder.single_template(TEMPLATES) if templates is None else templates),
        validate_templates(
            ADJECTIVE_TEMPLATES if adjective_templates is None else adjective_templates, "adjective_templates"
        ),
    )


def _embed(
    encoder: Encoder,
    texts: Sequence[str],
    templates: Sequence[str],
    cache_dir: str | os.PathLike[str] | None,
    use_cache: bool,
    progress: bool,
    warn: bool,
) -> Tensor:
    """Embeddings `(texts, dim)` on the CPU."""
    if isinstance(encoder, PrecomputedEncoder):
        # Candidates are without underscores, such as those in names of LVIS.
        names = {name.replace("_", " "): name for name in encoder.texts}
        # Names that are the text itself come first.
        names |= {name: name for name in encoder.texts}
        embeddings, _ = encoder.class_embeddings([names.get(text, text) for text in texts])
        return embeddings
    embeddings, _ = cached_class_embeddings(
        encoder,
        texts,
        templates,
        use_no_encoder=False,
        cache_dir=cache_dir,
        use_cache=use_cache,
        progress=progress,
        # Who names a corpus cannot shorten its texts.
        warn=warn,
    )
    return embeddings.cpu()


def _encoder_settings(encoder: DualEncoder) -> dict[str, Any]:
    return text_encoder_settings(encoder.model, "text", encoder.processor.tokenizer, encoder.max_text_length)


def _identity(encoder: Encoder) -> dict[str, Any]:
    if isinstance(encoder, PrecomputedEncoder):
        description = encoder.describe()
        return {"id": description["id"], "text_encoder_sha256": description["weights_sha256"]}
    settings = _encoder_settings(encoder)
    digest = settings_digest({name: settings[name] for name in _IDENTITY if name in settings})
    return {"id": encoder.name, "text_encoder_sha256": digest}


def _warn_of_unknown(labels: Sequence[str], filters: Sequence[str]) -> None:
    if unknown := unknown_labels(labels, filters):
        logger.warning(
            f"WordNet does not have {len(unknown)} of {len(labels)} labels ({first_texts(unknown)}), so that no "
            "candidates are dropped as their synonyms, kinds or what they are a kind of. It knows English nouns only; "
            "drop such candidates yourself."
        )


def _warn_of_labels(bank: NegativeLabels) -> None:
    if "id_names" in bank.settings["filters"] or bank.mined_for is None:
        return
    if named := [bank.labels[place] for place in same_names(bank.labels, bank.mined_for)]:
        logger.warning(
            f"{len(named)} of {len(bank)} negative labels {'is a label' if len(named) == 1 else 'are labels'}, too "
            f'({first_texts(named)}), so that images of these look unknown; add "id_names" to `filters`.'
        )


def _aligned(embeddings: Tensor) -> Tensor:
    """Embeddings at an address at which matrix products round as they do for others."""
    return embeddings.clone() if embeddings.data_ptr() % ALIGNMENT else embeddings


def _write(bank: NegativeLabels, path: Path, metadata: Mapping[str, str]) -> None:
    tensors = bank.to_tensors()
    entries: dict[str, Any] = {"__metadata__": {"format": _FORMAT, **metadata}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    # Filled up, so that a memory map has the embeddings, which come first, at an aligned address.
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    # As safetensors does, but without a copy of all embeddings.
    with atomic_path(path) as incomplete, incomplete.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            file.write(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def _read(path: Path) -> tuple[NegativeLabels, dict[str, str]]:
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {_FORMAT!r}")
        tensors = {name: opened.get_tensor(name) for name in ("embeddings", "content")}
    return NegativeLabels.from_tensors(tensors), metadata


def _read_cached(file: Path, key: str) -> NegativeLabels | None:
    try:
        bank, metadata = _read(file)
        if metadata.get("key") != key:
            raise ValueError("it was mined with another model or other settings")
        if metadata.get("sha256") != _checksum(bank):
            raise ValueError("its checksum is wrong, so it was changed after it had been written")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError) as error:
        logger.warning(f"The cached negative labels in {file} are mined again: {error}.")
        return None
    return bank


def _write_cached(bank: NegativeLabels, file: Path, key: str, record: Mapping[str, Any]) -> NegativeLabels:
    """Write a bank; give it as it is read again, so that its memory is that of the file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file.parent / "settings.json") as incomplete:
            incomplete.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        _write(bank, file, {"key": key, "sha256": _checksum(bank)})
        return _read(file)[0]
    # What has been mined is of use without the file.
    except (OSError, SafetensorError, ValueError) as error:
        logger.warning(
            f"Negative labels cannot be written to {file.parent} ({error}) and are not kept; make room there, or set "
            "`cache_dir` or the environment variable CLIPN_HF_CACHE to another folder."
        )
        return bank


def _checksum(bank: NegativeLabels) -> str:
    digest = hashlib.sha256()
    for tensor in bank.to_tensors().values():
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


__all__ = ["NegativeLabels"]
