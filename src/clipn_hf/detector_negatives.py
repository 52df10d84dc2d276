# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The negative labels of a detector: what was asked for, the bank that this gives, and texts that join it with labels.

Banks of the last few requests are kept in memory for each encoder, as label embeddings are, because mining one takes
long.
"""

import inspect
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.utils import logging

from .detector_results import LabelScore, named_scores
from .encoders import DualEncoder, PrecomputedEncoder
from .methods import Method, MethodInputs, unknown_argument
from .negative_settings import CORPORA
from .negatives import Corpus, NegativeLabels, load_corpus
from .negatives.corpus import check_texts, read_texts
from .scores import top_negatives

logger = logging.get_logger(__name__)

# What a detector knows itself; the other arguments of mining may be given to it.
_OWN_ARGUMENTS = ("model", "labels", "templates")
MINING_ARGUMENTS = tuple(
    name for name in inspect.signature(NegativeLabels.mine).parameters if name not in _OWN_ARGUMENTS
)
# Arguments that do not change what is mined, and have a meaning on one machine alone.
_CIRCUMSTANCES = ("cache_dir", "use_cache", "progress")
# That of NegLabel.
_TEMPERATURE = 0.01
MAX_REMEMBERED_BANKS = 4
MAX_REMEMBERED_PAIRS = 16_384

# What was asked for: nothing, arguments of mining, texts as they are, or a bank.
Asked = Mapping[str, Any] | list[str] | NegativeLabels | None

# None for banks that could not be mined again, of which the log is to say so once.
_banks: "WeakKeyDictionary[DualEncoder | PrecomputedEncoder, OrderedDict[Any, NegativeLabels | None]]" = (
    WeakKeyDictionary()
)
# For what each bank was made.
_requests: "WeakKeyDictionary[NegativeLabels, tuple[Any, ...]]" = WeakKeyDictionary()


def read_negatives(negatives: Any) -> Asked:
    """Read the argument `negatives` of a detector, so that later changes of lists and files do not matter.

    Args:
        negatives: As [`OODDetector`] takes it.

    Returns:
        `dict` of arguments of mining, `list[str]`, [`NegativeLabels`] or None.

    Raises:
        OSError: There is no such file.
        TypeError: It is none of these, or has an argument that mining does not have.
        ValueError: Texts are none, or one is blank; as [`~clipn_hf.negatives.load_corpus`] and `NegativeLabels.load`.
    """
    if negatives is None or isinstance(negatives, NegativeLabels):
        return negatives
    if isinstance(negatives, str) and negatives in CORPORA:
        return {"corpus": negatives}
    if isinstance(negatives, str | os.PathLike):
        if Path(negatives).suffix == ".safetensors":
            return NegativeLabels.load(negatives)
        if not Path(negatives).is_file():
            raise FileNotFoundError(
                f"`negatives` must be a file, or one of {', '.join(CORPORA)}, and there is no file "
                f"{os.fspath(negatives)!r}; give a single text in a list, as in [{os.fspath(negatives)!r}]."
            )
        return list(load_corpus(Path(negatives)).words)
    if isinstance(negatives, Mapping):
        for name in negatives:
            if name in _OWN_ARGUMENTS:
                raise TypeError(f"`negatives` has `{name}`, which is that of the detector; leave it out.")
            if name not in MINING_ARGUMENTS:
                raise unknown_argument("`negatives`", name, MINING_ARGUMENTS)
        asked = dict(negatives)
        corpus = asked.get("corpus")
        if corpus is not None and not (isinstance(corpus, str) and corpus in CORPORA):
            asked["corpus"] = load_corpus(corpus)
        return asked
    if isinstance(negatives, bytes) or not isinstance(negatives, Iterable):
        raise TypeError(
            "`negatives` must be negative labels, a list of texts, a file, or a dictionary of arguments of "
            f"`NegativeLabels.mine`, got {type(negatives).__name__}."
        )
    return check_texts(read_texts(negatives, "negatives"), None, "negatives")


def make_bank(
    encoder: DualEncoder | PrecomputedEncoder,
    method: Method,
    labels: Sequence[str],
    templates: Sequence[str],
    asked: Asked,
    before: NegativeLabels | None = None,
) -> NegativeLabels | None:
    """Make the negative labels of a detector.

    Args:
        encoder ([`DualEncoder`] or [`PrecomputedEncoder`]): Embeds them.
        method ([`~clipn_hf.methods.Method`]): Says how they are mined unless it is said otherwise.
        labels (`Sequence[str]`): The known classes.
        templates (`Sequence[str]`): What labels and mined texts are put into.
        asked: What [`read_negatives`] made of the argument `negatives`.
        before ([`NegativeLabels`], *optional*): The bank so far, which is kept where it is still right.

    Returns:
        [`NegativeLabels`], or None if none were asked for and the method does not need any. Nor are there any, and the
        log says so, where the method does not need them and a bank that was mined for other labels, or by another
        model, cannot be mined again.

    Raises:
        TypeError, ValueError: As `NegativeLabels.mine` and `NegativeLabels.from_texts`; a method needs a bank that
            cannot be mined again, because its candidates are gone.
    """
    if asked is None and "negatives" not in method.needs:
        return None

    def make() -> NegativeLabels | None:
        if isinstance(asked, NegativeLabels):
            return _adapt(asked, encoder, method, labels, templates)
        if isinstance(asked, list):
            return _from_texts(encoder, asked, labels, templates)
        return NegativeLabels.mine(encoder, labels, templates=templates, **_arguments(method, asked))

    request = _request(method, labels, templates, asked)
    kept = _banks.setdefault(encoder, OrderedDict())
    state = encoder.weights_state() if isinstance(encoder, DualEncoder) else None
    if (request, state) in kept:
        bank = kept[request, state]
    elif before is not None and _requests.get(before) == request and before.made_with(encoder):
        # The same weights, moved to another device or read from a file again.
        bank = before
    else:
        bank = make()
    _keep(encoder, request, state, bank)
    return bank


def remember_bank(
    encoder: DualEncoder | PrecomputedEncoder,
    method: Method,
    labels: Sequence[str],
    templates: Sequence[str],
    asked: Asked,
    bank: NegativeLabels,
) -> None:
    """Keep a bank that [`make_bank`] gave before, so that it is found again.

    Args:
        encoder, method, labels, templates, asked: As for [`make_bank`].
        bank ([`NegativeLabels`]): What it returned.
    """
    state = encoder.weights_state() if isinstance(encoder, DualEncoder) else None
    _keep(encoder, _request(method, labels, templates, asked), state, bank)


def asked_to_json(asked: Asked) -> Any:
    """Say in JSON what was asked for, for detectors that are saved.

    Args:
        asked: What [`read_negatives`] made of the argument `negatives`.

    Returns:
        `"method"` where nothing was asked for, `"texts"`, `"bank"`, or the arguments of mining. Candidates that were
        given are not saved with a detector: their bank alone is.
    """
    if asked is None:
        return "method"
    if isinstance(asked, list):
        return "texts"
    if isinstance(asked, NegativeLabels) or isinstance(asked.get("corpus"), Corpus):
        return "bank"
    return json.loads(json.dumps({name: value for name, value in asked.items() if name not in _CIRCUMSTANCES}))


def asked_from_json(value: Any, bank: NegativeLabels) -> Asked:
    """Read what `asked_to_json` wrote, with the bank that it led to."""
    if isinstance(value, Mapping):
        return dict(value)
    if value == "method":
        return None
    return list(bank.labels) if value == "texts" else bank


def same_bank(one: NegativeLabels | None, other: NegativeLabels | None) -> bool:
    """Tell whether two banks give the same scores."""
    if one is None or other is None:
        return one is other
    return one is other or (one.labels == other.labels and torch.equal(one.embeddings, other.embeddings))


def nearest_negatives(
    bank: NegativeLabels | None, inputs: MethodInputs, count: int, temperature: float | None = None
) -> list[list[LabelScore]]:
    """Find the negative labels that images look most like.

    Args:
        bank ([`NegativeLabels`], *optional*): The negative labels.
        inputs ([`~clipn_hf.methods.MethodInputs`]): The images.
        count (`int`): How many to find for each image; with 0 nothing is computed.
        temperature (`float`, *optional*, defaults to 0.01):
            Of the softmax over the cosines of all labels and negative labels.

    Returns:
        `list` of `list` of [`~clipn_hf.detector_results.LabelScore`], one per image, the most probable first; empty
        without negative labels.
    """
    if bank is None or count == 0 or len(inputs.similarity) == 0:
        return [[] for _ in inputs.similarity]
    assert inputs.image_embeddings is not None
    masses, positions = top_negatives(
        inputs.similarity, inputs.image_embeddings, bank.embeddings, count, temperature or _TEMPERATURE
    )
    return named_scores(bank.labels, positions, masses)


@dataclass(frozen=True, eq=False)
class PairEmbedder:
    """Embed "<label> and <negative label>" in the templates of a detector.

    Pairs that were asked for lately are kept. On a CPU each pair is embedded by itself, so that its embedding is the
    same to the last bit whatever is kept and whichever other pairs are asked for; on an accelerator all that are
    missing are embedded together, and differ by rounding.

    That is what methods with pairs cost: on one core, embedding a pair takes a ViT-B/16 a twentieth of the time that
    an image takes, so that 25 new pairs for each image take longer than the image itself. Where images share pairs,
    where fewer are asked for (`num_pairs`) and on an accelerator it is less.

    Args:
        encoder ([`DualEncoder`]): Embeds the texts.
        labels (`Sequence[str]`): The known classes.
        negatives (`Sequence[str]`): The negative labels.
        templates (`Sequence[str]`): What the texts are put into.
    """

    encoder: DualEncoder
    labels: Sequence[str]
    negatives: Sequence[str]
    templates: Sequence[str]
    _kept: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    def __call__(self, pairs: Tensor) -> Tensor:
        """Embed pairs.

        Args:
            pairs (`torch.Tensor` of shape `(pairs, 2)`): Positions of a label and of a negative label, int64.

        Returns:
            `torch.Tensor` of shape `(pairs, dim)`, float32, unit norm, on the CPU.
        """
        texts = [f"{self.labels[label]} and {self.negatives[negative]}" for label, negative in pairs.tolist()]
        found = {text: self._kept[text] for text in texts if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        step = 1 if self.encoder.device.type == "cpu" else max(len(missing), 1)
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            embeddings, _ = self.encoder.class_embeddings(
                batch, self.templates, use_no_encoder=False, use_memory=False
            )
            # Rows of their own, which do not keep the batch in memory.
            found.update(zip(batch, (row.clone() for row in embeddings.cpu()), strict=True))
        for text, embedding in found.items():
            self._kept[text] = embedding
            self._kept.move_to_end(text)
        while len(self._kept) > MAX_REMEMBERED_PAIRS:
            self._kept.popitem(last=False)
        return torch.stack([found[text] for text in texts]) if texts else torch.empty(0, 0)


def _arguments(method: Method, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**method.mining, **(asked or {})}


def _request(method: Method, labels: Sequence[str], templates: Sequence[str], asked: Asked) -> tuple[Any, ...]:
    """All that a bank depends on besides the encoder, to be compared."""
    if isinstance(asked, NegativeLabels):
        # Not by itself, because what is kept for it may be another bank.
        return "bank", weakref.ref(asked), tuple(labels), tuple(templates), "negatives" in method.needs
    if isinstance(asked, list):
        return "texts", tuple(asked), tuple(labels), tuple(templates)
    arguments = _arguments(method, asked)
    relevant = {name: value for name, value in arguments.items() if name not in _CIRCUMSTANCES}
    return "mined", _frozen(relevant), tuple(labels), tuple(templates)


def _frozen(value: Any) -> Any:
    """Arguments as something that can be compared and looked up."""
    if isinstance(value, Corpus):
        return "corpus", value.sha256
    if isinstance(value, Mapping):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(item) for item in value)
    return value


def _keep(
    encoder: DualEncoder | PrecomputedEncoder, request: tuple[Any, ...], state: Any, bank: NegativeLabels | None
) -> None:
    kept = _banks.setdefault(encoder, OrderedDict())
    kept[request, state] = bank
    kept.move_to_end((request, state))
    if len(kept) > MAX_REMEMBERED_BANKS:
        kept.popitem(last=False)
    if bank is not None:
        _requests[bank] = request


def _adapt(
    bank: NegativeLabels,
    encoder: DualEncoder | PrecomputedEncoder,
    method: Method,
    labels: Sequence[str],
    templates: Sequence[str],
) -> NegativeLabels | None:
    """The bank that was given, or what it becomes for these labels and templates and this encoder, if anything."""
    own_templates = bank.settings.get("templates")
    # Texts that were embedded before have the templates that they have, and mining again for an explanation alone
    # would take too long.
    may_change = isinstance(encoder, DualEncoder) and (bank.mined_for is None or "negatives" in method.needs)
    is_other = own_templates is not None and list(own_templates) != list(templates)
    wanted = templates if may_change else None
    if not _fits(bank, encoder, labels):
        if bank.mined_for is None or "negatives" in method.needs:
            return _renew(bank, encoder, labels, wanted)
        try:
            return _renew(bank, encoder, labels, wanted)
        except ValueError as error:
            logger.warning(
                f"The detector has dropped its negative labels, which with method {method.name} only explain. {error}"
            )
            return None
    if is_other and wanted is not None:
        try:
            return _renew(bank, encoder, labels, wanted)
        except ValueError:
            pass
    if is_other and "negatives" in method.needs:
        logger.warning(
            f"The negative labels were embedded in the templates {own_templates}, the labels in {list(templates)}, so "
            f"that images may fit the ones or the others better for their wording alone; leave out `templates`, or "
            "mine negative labels in the same."
        )
    return bank


def _fits(bank: NegativeLabels, encoder: DualEncoder | PrecomputedEncoder, labels: Sequence[str]) -> bool:
    """Whether a bank is one for these labels, embedded by this encoder."""
    if bank.mined_for is None:
        named = {text.strip().casefold() for text in bank.labels}
        for_labels = not any(label.strip().casefold() in named for label in labels)
    else:
        for_labels = {*bank.mined_for} == {*labels}
    # Embeddings of single texts and those of a bank may have been computed at different times by the same model.
    named_alike = isinstance(encoder, PrecomputedEncoder) and bank.model.get("id") == encoder.source
    return for_labels and (named_alike or bank.made_with(encoder))


def _renew(
    bank: NegativeLabels,
    encoder: DualEncoder | PrecomputedEncoder,
    labels: Sequence[str],
    templates: Sequence[str] | None,
) -> NegativeLabels:
    """Negative labels found in the way of a bank, for other labels, in other templates or by another model."""
    if bank.mined_for is None:
        return _from_texts(encoder, bank.labels, labels, templates)
    try:
        candidates = bank.load_candidates()
    except ValueError as error:
        raise ValueError(
            f"The negative labels were mined for other labels, in other templates or by another model. {error} Give "
            "others as `negatives`, in `with_changes` together with what changes."
        ) from error
    logger.info(
        "The negative labels were mined for other labels, in other templates or by another model, and are mined again."
    )
    return bank.renew(encoder, labels, templates=templates, corpus=candidates)


def _from_texts(
    encoder: DualEncoder | PrecomputedEncoder, texts: list[str], labels: Sequence[str], templates: Any
) -> NegativeLabels:
    # Here errors call the argument as a detector does.
    texts = check_texts(texts, labels, "negatives")
    return NegativeLabels.from_texts(encoder, texts, labels, templates=templates)


__all__ = [
    "Asked",
    "PairEmbedder",
    "asked_from_json",
    "asked_to_json",
    "make_bank",
    "nearest_negatives",
    "read_negatives",
    "remember_bank",
    "same_bank",
]
