# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds and p-values with a finite-sample promise, from scores of held-out ID images.

Every promise rests on one condition: the images used for calibration and the new ID images are exchangeable, as when
both are drawn at random from one collection. Images that a method was fitted on are not held out. A promise about ID
images says nothing about how many OOD images are caught.

Scores are OOD-ness, higher = more OOD. Decisions depend on their order alone. Thresholds and p-values keep their
promise also where scores are equal.

Sources: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (conformal prediction); Vovk,
"Conditional Validity of Inductive Conformal Predictors", ACML 2012, https://arxiv.org/abs/1209.2673 (confidence over
calibration sets, groups); Bates et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 2023,
https://arxiv.org/abs/2104.08279 (selection in a batch).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import normalize

from .evaluation.metrics import Labels, Scores, as_scores, check_share, most_within

Method = Literal["conformal", "quantile", "text"]

# Relative. A tail probability that equals `delta` up to rounding counts as equal.
_ROUNDING = 1e-9


class GroupThreshold(NamedTuple):
    """The threshold of one label.

    Args:
        label (`int` or `str`): The label.
        threshold (`float`): Images with this label are unknown when their score is above.
        n (`int`): How many images it was calibrated on.
    """

    label: int | str
    threshold: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """A calibrated threshold and what it promises, as [`calibrate`] returns it.

    Args:
        threshold (`float`):
            An image is unknown when `score > threshold`. It is one of the calibration scores, so that the comparison
            is exact in the precision in which these were computed.
        max_id_rejection (`float` or `None`):
            Share of new ID images that may be called unknown; `None` with `method="text"`, which bounds nothing.
        method (`"conformal"`, `"quantile"` or `"text"`):
            How the threshold was chosen; `"text"` stands for [`starting_threshold`].
        n (`int`):
            How many ID images it was calibrated on, or labels with `method="text"`.
        delta (`float`, *optional*):
            The promise holds with confidence `1 - delta`; `None` if it holds on average.
        groups (`tuple` of [`GroupThreshold`], *optional*, defaults to `()`):
            A threshold for each label. `threshold` then is the one for all images together.
        known_below (`float`, *optional*):
            An image is known when it is not unknown and `score < known_below`, otherwise unsure.
        max_ood_acceptance (`float`, *optional*):
            Share of new OOD images, like those used for calibration, that may be called known.
        n_ood (`int`, *optional*, defaults to 0):
            How many OOD images `known_below` was calibrated on.
        date (`str`, *optional*):
            The day of calibration, as `YYYY-MM-DD` in UTC. Detectors write it.
        data_sha256 (`str`, *optional*):
            SHA-256 of the ID images it was calibrated on, whatever their order. Detectors write it.
        ood_data_sha256 (`str`, *optional*):
            The same of the OOD images.

    Raises:
        TypeError, ValueError: A field is of the wrong type or outside its range.
    """

    threshold: float
    max_id_rejection: float | None
    method: Method
    n: int
    delta: float | None = None
    groups: tuple[GroupThreshold, ...] = ()
    known_below: float | None = None
    max_ood_acceptance: float | None = None
    n_ood: int = 0
    date: str | None = None
    data_sha256: str | None = None
    ood_data_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.method != "text":
            _check_promise(self.max_id_rejection, "max_id_rejection", self.method, self.delta)
        elif (self.max_id_rejection, self.delta, self.groups, self.known_below) != (None, None, (), None):
            raise ValueError('`method="text"` promises nothing; leave out everything but `threshold` and `n`.')
        if (self.known_below is None) != (self.max_ood_acceptance is None):
            raise ValueError("`known_below` and `max_ood_acceptance` belong together; give both or none.")
        if self.max_ood_acceptance is not None:
            check_share(self.max_ood_acceptance, "max_ood_acceptance", "(0, 1)", 0.05)
        thresholds = {"threshold": self.threshold, "known_below": self.known_below}
        thresholds |= {f"groups[{group.label!r}].threshold": group.threshold for group in self.groups}
        for name, value in thresholds.items():
            if value is not None and not (_is_number(value) and math.isfinite(value)):
                raise ValueError(f"`{name}` must be a finite number, but is {value!r}.")
        counts: dict[str, tuple[Any, int]] = {
            "n": (self.n, 1),
            "n_ood": (self.n_ood, 0 if self.known_below is None else 1),
        }
        counts |= {f"groups[{group.label!r}].n": (group.n, 1) for group in self.groups}
        for name, (count, least) in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}, but is {count!r}.")
        if len({group.label for group in self.groups}) < len(self.groups):
            raise ValueError("`groups` has several thresholds for one label; give one for each.")

    @property
    def promise(self) -> str:
        """What holds for new images, in words."""
        if self.max_id_rejection is None:
            return (
                f"No promise at all: the threshold is a guess from the texts of {self.n} labels, made without any "
                "image; calibrate it with images."
            )
        each = "for each label, " if self.groups else ""
        images = "the calibration images of that label" if self.groups else f"the {self.n} calibration images"
        rate = f"at most {_percent(self.max_id_rejection)} of"
        kind = "that are nearest to it, like the calibration images," if self.groups else "like the calibration images"
        if self.method == "quantile":
            text = f"No promise about new images: {each}{rate} {images} score above the threshold."
        else:
            text = f"{each}{rate} new ID images {kind} are called unknown, {self._certainty(images)}."
        if self.known_below is not None and self.max_ood_acceptance is not None:
            rate, images = f"at most {_percent(self.max_ood_acceptance)} of", f"the {self.n_ood} calibration images"
            if self.method == "quantile":
                text += f" Likewise, {rate} {images} that are OOD score below the threshold for known."
            else:
                text += f" At{rate[2:]} new OOD images like {images} that are OOD are called known, "
                text += f"{self._certainty(images)}."
        return text[0].upper() + text[1:]

    @property
    def origin(self) -> str | None:
        """On how many images, when, and on which ones, in words; `None` where a detector has not written it down."""
        if self.date is None or self.data_sha256 is None:
            return None
        return f"{self.n} images, {self.date}, SHA-256 {self.data_sha256[:16]}…"

    def _certainty(self, images: str) -> str:
        if self.delta is None:
            return f"on average over draws of {images}"
        return f"with confidence {_percent(1 - self.delta)} over the draw of {images}"

    def is_ood(self, scores: Scores, labels: Labels | None = None) -> npt.NDArray[np.bool_]:
        """Tell which images are unknown: `score > threshold`, with the threshold of their label where each has one.

        Args:
            scores (array, tensor or list of shape `(images,)`): OOD-ness of new images; may be empty.
            labels (array, tensor or list of shape `(images,)`, *optional*):
                Their labels, found in the same way as those given to [`calibrate`]. Needed if there are `groups`,
                not looked at otherwise.

        Returns:
            `numpy.ndarray` of shape `(images,)`, `bool`; `True` = unknown.

        Raises:
            ValueError: A score is NaN; `labels` are missing, too few, or among them is one without a threshold.
        """
        values = as_scores(scores, "scores", min_images=0)
        if not self.groups:
            return values > self.threshold
        if labels is None:
            raise ValueError("`labels` is missing; this calibration has a threshold for each label.")
        thresholds = {group.label: group.threshold for group in self.groups}
        found = _as_labels(labels, len(values), "labels")
        missing = sorted({str(label) for label in found if label not in thresholds})
        if missing:
            raise ValueError(
                f"`labels` has labels without a threshold: {_enumerate(missing)}; calibrate with images of each label."
            )
        return values > np.array([thresholds[label] for label in found], dtype=np.float64)

    def answers(self, scores: Scores, labels: Labels | None = None) -> list[Literal["known", "unknown", "unsure"]]:
        """Sort images into known, unknown and unsure.

        Unknown is what [`Calibration.is_ood`] says. Of the others, those with `score < known_below` are known and the
        rest is unsure; without `known_below`, all of them are known. Both promises hold at once: the unsure images are
        those that none of the two covers. Where the two thresholds cross, no image is unsure.

        Args:
            scores (array, tensor or list of shape `(images,)`): OOD-ness of new images; may be empty.
            labels (array, tensor or list of shape `(images,)`, *optional*): As for [`Calibration.is_ood`].

        Returns:
            `list` of `"known"`, `"unknown"` or `"unsure"`.

        Raises:
            ValueError: As [`Calibration.is_ood`].
        """
        unknown = self.is_ood(scores, labels)
        unsure = np.zeros_like(unknown)
        if self.known_below is not None:
            unsure = as_scores(scores, "scores", min_images=0) >= self.known_below
        return [
            "unknown" if is_unknown else "unsure" if is_unsure else "known"
            for is_unknown, is_unsure in zip(unknown, unsure, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Turn the calibration into a dictionary that JSON can hold; it states the promise, too.

        Returns:
            `dict`: The fields and `"promise"`.
        """
        groups = [group._asdict() for group in self.groups]
        return {**asdict(self), "groups": groups, "promise": self.promise}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a calibration from what [`Calibration.to_dict`] returned, or what JSON made of it.

        Args:
            values (`dict`): The fields; `"promise"` is not looked at, since it follows from them.

        Returns:
            [`Calibration`]: Equal to the one written.

        Raises:
            TypeError, ValueError: A field is missing, not known, of the wrong type or outside its range.
        """
        fields = {name: value for name, value in values.items() if name != "promise"}
        required = {"threshold", "max_id_rejection", "method", "n"}
        if not required <= fields.keys() <= set(cls.__dataclass_fields__):
            wrong = sorted((required - fields.keys()) | (fields.keys() - set(cls.__dataclass_fields__)))
            raise ValueError(f"`values` is no calibration: {_enumerate(wrong)} missing or not known.")
        groups = fields.get("groups", ())
        return cls(**{**fields, "groups": tuple(GroupThreshold(**group) for group in groups)})


def calibrate(
    id_scores: Scores,
    max_id_rejection: float = 0.05,
    method: Method = "conformal",
    delta: float | None = None,
    *,
    labels: Labels | None = None,
    ood_scores: Scores | None = None,
    max_ood_acceptance: float = 0.05,
) -> Calibration:
    r"""Choose the smallest threshold that falsely rejects at most a given share of ID images.

    With the \\( n \\) held-out scores in ascending order, the threshold is \\( s_{(n-j)} \\), which leaves at most
    \\( j \\) of them above it. With \\( \alpha \\) for `max_id_rejection`:

    - `method="conformal"`: \\( j = \lfloor \alpha (n + 1) \rfloor - 1 \\). The probability that a new ID image is
      called unknown is at most \\( \alpha \\) *on average over calibration sets*. With 100 images and
      \\( \alpha = 0.05 \\), it is above 0.1 for about one calibration set in forty. `score > threshold` says the same
      as `p_values(id_scores, score) <= alpha`.
    - `method="conformal"` with `delta`: the largest \\( j \\) with
      \\( P(\mathrm{Bin}(n, \alpha) \le j) \le \delta \\), the exact tail of the binomial distribution.
      *With confidence* \\( 1 - \delta \\) over calibration sets, that probability is at most \\( \alpha \\).
    - `method="quantile"`: \\( j = \lfloor \alpha n \rfloor \\), which promises nothing about new images.

    With `labels`, each label gets a threshold of its own, calibrated on its images alone, and the promise holds for
    the new ID images of each label (Mondrian conformal prediction). Labels of new images must be found in the same
    way: since their true labels are not known, give the *predicted* ones here, too.

    With `ood_scores`, there are three answers. An image that is not unknown is known below a second threshold and
    otherwise unsure. That threshold, chosen by the same rule from the other side, lets at most the share
    `max_ood_acceptance` of OOD images pass as known: of OOD images *like those given*, not of all there are. With
    `delta`, each of the two promises has that confidence, both together at least \\( 1 - 2 \delta \\). Likewise, the
    promise for each label has that confidence, not all of them together.

    Args:
        id_scores (array, tensor or list of shape `(images,)`):
            OOD-ness of held-out ID images; higher = more OOD.
        max_id_rejection (`float`, *optional*, defaults to 0.05):
            Share of ID images that may be called unknown, in (0, 1).
        method (`"conformal"` or `"quantile"`, *optional*, defaults to `"conformal"`):
            How the threshold is chosen, as explained above.
        delta (`float`, *optional*):
            Probability, in (0, 1), that the calibration set is too unlucky for the promise. If `None`, the promise
            holds on average.
        labels (array, tensor or list of shape `(images,)`, *optional*):
            A label of each ID image, whole numbers or strings.
        ood_scores (array, tensor or list of shape `(ood_images,)`, *optional*):
            OOD-ness of held-out OOD images, for three answers.
        max_ood_acceptance (`float`, *optional*, defaults to 0.05):
            Share of OOD images that may be called known, in (0, 1).

    Returns:
        [`Calibration`]

    Raises:
        TypeError: A share is not a number.
        ValueError: Scores are empty, not one-dimensional, NaN or infinite; there are too few of them for the promise;
            `labels` do not match `id_scores`; a share is outside (0, 1); `method` is neither of the two; `delta` is
            given with `method="quantile"`.

    Example:

    ```python
    >>> from clipn_hf.calibration import calibrate
    >>> calibration = calibrate(range(100), max_id_rejection=0.1)
    >>> calibration.threshold
    90.0
    >>> calibration.answers([12.5, 90.0, 90.5])
    ['known', 'known', 'unknown']
    >>> calibrate(range(100), max_id_rejection=0.1, delta=0.05).threshold
    95.0

    ```
    """
    if method not in ("conformal", "quantile"):
        raise ValueError(f"`method` must be 'conformal' or 'quantile', but is {method!r}.")
    _check_promise(max_id_rejection, "max_id_rejection", method, delta)
    id_values = _finite(id_scores, "id_scores")
    allowed = _allowed(len(id_values), max_id_rejection, method, delta)
    if allowed is None:
        raise _too_few("id_scores", len(id_values), "max_id_rejection", max_id_rejection, delta)
    groups = []
    if labels is not None:
        members: dict[int | str, list[int]] = {}
        for position, label in enumerate(_as_labels(labels, len(id_values), "labels")):
            members.setdefault(label, []).append(position)
        needed = images_needed(max_id_rejection, delta) if method == "conformal" else 1
        small = [f"{label} ({len(rows)})" for label, rows in members.items() if len(rows) < needed]
        if small:
            raise ValueError(
                f"`labels` leaves too few images for {len(small)} of {len(members)} labels: {_enumerate(small)}; each "
                f"needs at least {needed}. Give more images, put similar labels together, or leave `labels` out."
            )
        for label, rows in sorted(members.items(), key=lambda item: (isinstance(item[0], str), item[0])):
            group_allowed = _allowed(len(rows), max_id_rejection, method, delta)
            assert group_allowed is not None  # as `images_needed` says
            groups.append(GroupThreshold(label, _nth_largest(id_values[rows], group_allowed), len(rows)))
    known_below, n_ood = None, 0
    if ood_scores is not None:
        check_share(max_ood_acceptance, "max_ood_acceptance", "(0, 1)", 0.05)
        ood_values = _finite(ood_scores, "ood_scores")
        n_ood = len(ood_values)
        ood_allowed = _allowed(n_ood, max_ood_acceptance, method, delta)
        if ood_allowed is None:
            raise _too_few("ood_scores", n_ood, "max_ood_acceptance", max_ood_acceptance, delta)
        known_below = -_nth_largest(-ood_values, ood_allowed)
    return Calibration(
        threshold=_nth_largest(id_values, allowed),
        max_id_rejection=float(max_id_rejection),
        method=method,
        n=len(id_values),
        delta=None if delta is None else float(delta),
        groups=tuple(groups),
        known_below=known_below,
        max_ood_acceptance=None if known_below is None else float(max_ood_acceptance),
        n_ood=n_ood,
    )


def starting_threshold(score: Callable[[Tensor], Tensor], text_embeddings: Tensor, contrast: float) -> float:
    r"""Guess a threshold from the class texts alone. It promises nothing: calibrate as soon as there are ID images.

    With \\( t_c \\) the class texts: the median over the classes \\( c \\) of the score at the cosines
    \\( \kappa \, (t_c \cdot t_1, …, t_c \cdot t_C) \\). Each text stands in for an image of its class, with the
    contrast between classes reduced to the fraction \\( \kappa \\), because the best label stands out from the others
    far less for an image than for the text of that label. How much less depends on the model, and texts do not tell:
    for images of a class it is about 0.35 for OpenAI's ViT-B/32 and about 0.5 for clipn-tiny.

    It makes sense only for scores that stay the same when a number is added to all cosines, those of a softmax over
    them (MCM, MSP). How large cosines of images with texts are cannot be told from texts either.

    Args:
        score (`Callable`): Cosines of shape `(images, classes)` to OOD-ness of shape `(images,)`, higher = more OOD.
        text_embeddings (`torch.Tensor` of shape `(classes, dim)`): Of at least two labels, of any norm.
        contrast (`float`): \\( \kappa \\) in (0, 1). Lower rejects fewer images, ID and OOD alike.

    Returns:
        `float`: An image is called unknown when its score is above.

    Raises:
        ValueError: Fewer than two labels, or `contrast` outside (0, 1).

    Example:

    ```python
    >>> import torch
    >>> from clipn_hf.calibration import starting_threshold
    >>> from clipn_hf.scores import mcm
    >>> round(starting_threshold(mcm, torch.tensor([[1.0, 0.0], [0.8, 0.6]]), contrast=0.2), 4)
    0.49

    ```
    """
    if text_embeddings.ndim != 2 or len(text_embeddings) < 2:
        raise ValueError(
            "`text_embeddings` must have shape (classes, dim) with at least 2 classes, but has shape "
            f"{tuple(text_embeddings.shape)}."
        )
    check_share(contrast, "contrast", "(0, 1)", 0.2)
    texts = normalize(text_embeddings.float(), dim=1)
    return score(contrast * (texts @ texts.T)).quantile(0.5).item()


def images_needed(max_rejection: float = 0.05, delta: float | None = None) -> int:
    r"""Tell how many held-out images a conformal threshold needs at least.

    With \\( \alpha \\) for `max_rejection`: the smallest \\( n \\) with \\( 1 / (n + 1) \le \alpha \\), or with
    \\( (1 - \alpha)^n \le \delta \\). That many give a threshold at the largest score; more make it sharper.

    Args:
        max_rejection (`float`, *optional*, defaults to 0.05): Share of images that may be rejected, in (0, 1).
        delta (`float`, *optional*): As for [`calibrate`].

    Returns:
        `int`

    Raises:
        TypeError: A share is not a number.
        ValueError: A share is outside (0, 1).

    Example:

    ```python
    >>> from clipn_hf.calibration import images_needed
    >>> images_needed(0.05), images_needed(0.05, delta=0.05)
    (19, 59)

    ```
    """
    _check_promise(max_rejection, "max_rejection", "conformal", delta)
    estimate = 1 / max_rejection - 1 if delta is None else math.log(delta) / math.log1p(-max_rejection)
    n = max(1, math.floor(estimate) - 1)
    while not _is_enough(n, max_rejection, delta):
        n += 1
    return n


def p_values(calibration_scores: Scores, scores: Scores) -> npt.NDArray[np.float64]:
    r"""Compute the conformal p-value of each image against the hypothesis that it is ID.

    \\( p = (1 + \#\{i : c_i \ge s\}) / (n + 1) \\) with the \\( n \\) calibration scores \\( c_i \\). For a new ID
    image, \\( P(p \le \alpha) \le \alpha \\) for every \\( \alpha \\), on average over calibration sets.

    Args:
        calibration_scores (array, tensor or list of shape `(n,)`): OOD-ness of held-out ID images.
        scores (array, tensor or list of shape `(images,)`): OOD-ness of new images; may be empty.

    Returns:
        `numpy.ndarray` of shape `(images,)`, float64, in [1 / (n + 1), 1]; lower = more OOD.

    Raises:
        ValueError: Scores are not one-dimensional, not numeric or NaN; there are no calibration scores.

    Example:

    ```python
    >>> from clipn_hf.calibration import p_values
    >>> p_values([0.1, 0.2, 0.3, 0.4], [0.0, 0.3, 0.9])
    array([1. , 0.6, 0.2])

    ```
    """
    calibration = as_scores(calibration_scores, "calibration_scores")
    return _rank(calibration, as_scores(scores, "scores", min_images=0))


def benjamini_hochberg(p_values: Scores, level: float = 0.05) -> npt.NDArray[np.bool_]:
    r"""Select the images of a batch to call unknown, so that few of those selected are ID.

    Selects the \\( k \\) smallest of the \\( m \\) p-values, for the largest \\( k \\) whose \\( k \\)-th one is at
    most \\( k \cdot \mathrm{level} / m \\). The expected share of ID images among those selected, the false discovery
    rate, is at most `level` for p-values that are independent or, as conformal ones with one calibration set are where
    no scores are equal, positively dependent (PRDS; Bates et al. 2023, theorem 2). That differs from [`calibrate`],
    which bounds the share of ID images that are selected.

    Args:
        p_values (array, tensor or list of shape `(images,)`): One p-value per image; may be empty.
        level (`float`, *optional*, defaults to 0.05): The false discovery rate allowed, in (0, 1).

    Returns:
        `numpy.ndarray` of shape `(images,)`, `bool`; `True` = selected.

    Raises:
        TypeError: `level` is not a number.
        ValueError: A p-value is outside [0, 1] or NaN; `level` is outside (0, 1).

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate", Journal of the Royal Statistical Society B,
    1995.

    Example:

    ```python
    >>> from clipn_hf.calibration import benjamini_hochberg
    >>> benjamini_hochberg([0.03, 0.01, 0.2, 0.9], level=0.1)
    array([ True,  True, False, False])

    ```
    """
    check_share(level, "level", "(0, 1)", 0.05)
    values = _check_p_values(as_scores(p_values, "p_values", min_images=0), "p_values")
    ordered = np.sort(values)
    # p-values are fractions, which often meet their bound: rounding must not decide.
    bounds = level * np.arange(1, len(ordered) + 1) / max(len(ordered), 1) * (1 + _ROUNDING)
    passing = np.flatnonzero(ordered <= bounds)
    if len(passing) == 0:
        return np.zeros(len(values), dtype=np.bool_)
    return values <= ordered[passing[-1]]


def combine_p_values(
    p_values: Any,
    method: Literal["simes", "fisher", "rank"] = "simes",
    id_p_values: Any = None,
) -> npt.NDArray[np.float64]:
    r"""Combine the p-values that several detection methods give to the same images.

    With the p-values \\( p_1, …, p_K \\) of an image:

    - `"simes"`: \\( \min_k K p_{(k)} / k \\). Valid if they are independent or positively dependent (PRDS), as may be
      assumed of scores that tend to rise together; not valid for every dependence.
    - `"fisher"`: \\( P(\chi^2_{2K} \ge -2 \sum_k \ln p_k) \\). Valid if they are *independent*. Several scores of one
      image rarely are, and p-values that rise together then come out too small.
    - `"rank"`: the rank of \\( -\sum_k \ln p_k \\) among the same statistic of held-out ID images, as [`p_values`]
      does. Valid whatever the dependence, provided these are other images than the ones that the p-values were
      calibrated on, and were given their p-values in the same way.

    Args:
        p_values (array, tensor or list of shape `(methods, images)`):
            p-values of the images to be judged.
        method (`"simes"`, `"fisher"` or `"rank"`, *optional*, defaults to `"simes"`):
            How to combine, as explained above.
        id_p_values (array, tensor or list of shape `(methods, id_images)`, *optional*):
            p-values of held-out ID images, needed for `"rank"` only.

    Returns:
        `numpy.ndarray` of shape `(images,)`, float64, in [0, 1]; lower = more OOD.

    Raises:
        ValueError: A p-value is outside [0, 1] or NaN; there is no method; `method` is none of the three;
            `id_p_values` is missing, superfluous, empty, or of other methods.

    Source: Simes, "An improved Bonferroni procedure for multiple tests of significance", Biometrika 1986; Fisher,
    "Statistical Methods for Research Workers", 1932.

    Example:

    ```python
    >>> from clipn_hf.calibration import combine_p_values
    >>> combine_p_values([[0.02, 0.5], [0.03, 0.9]])
    array([0.03, 0.9 ])

    ```
    """
    if method not in ("simes", "fisher", "rank"):
        raise ValueError(f"`method` must be 'simes', 'fisher' or 'rank', but is {method!r}.")
    if (id_p_values is not None) != (method == "rank"):
        raise ValueError('`id_p_values` is for `method="rank"` and needed there; give both or none.')
    values = _as_p_matrix(p_values, "p_values")
    methods = len(values)
    if method == "simes":
        smallest: npt.NDArray[np.float64] = (
            methods * np.sort(values, axis=0) / np.arange(1, methods + 1)[:, None]
        ).min(axis=0)
        return np.minimum(smallest, 1)
    with np.errstate(divide="ignore"):
        statistic = np.abs(np.log(values).sum(axis=0))
        if method == "rank":
            id_values = _as_p_matrix(id_p_values, "id_p_values")
            if len(id_values) != methods or id_values.shape[1] == 0:
                raise ValueError(
                    f"`id_p_values` must have shape ({methods}, id_images) with at least one image, but has shape "
                    f"{id_values.shape}."
                )
            return _rank(np.abs(np.log(id_values).sum(axis=0)), statistic)
    # With 2K degrees of freedom, the survival function is exp(-x) * sum_{k < K} x^k / k!.
    x = np.clip(statistic, 1e-300, 1e300)[None]
    powers = np.arange(methods)[:, None]
    logs = powers * np.log(x) - np.array([math.lgamma(power + 1) for power in range(methods)])[:, None] - x
    survival: npt.NDArray[np.float64] = np.exp(logs).sum(axis=0)
    return np.clip(survival, 0, 1)


def _rank(calibration: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    below = np.searchsorted(np.sort(calibration), values, side="left")
    result: npt.NDArray[np.float64] = (1 + len(calibration) - below) / (len(calibration) + 1)
    return result


def _allowed(n: int, rate: float, method: str, delta: float | None) -> int | None:
    """Return how many of n images may lie beyond the threshold, `None` if n are too few for the promise."""
    if method == "quantile":
        return most_within(rate, n)
    if not _is_enough(n, rate, delta):
        return None
    if delta is None:
        return most_within(rate, n + 1) - 1
    # Logarithms of the binomial probabilities of 0, 1, …, n, each from the one before.
    j = np.arange(1, n + 1)
    steps = np.log((n + 1 - j) / j) + math.log(rate) - math.log1p(-rate)
    logs = np.cumsum(np.concatenate(([n * math.log1p(-rate)], steps)))
    tails = np.cumsum(np.exp(logs))
    return max(0, int(np.searchsorted(tails, delta * (1 + _ROUNDING), side="right")) - 1)


def _is_enough(n: int, rate: float, delta: float | None) -> bool:
    if delta is None:
        return 1 / (n + 1) <= rate
    return n * math.log1p(-rate) <= math.log(delta) + _ROUNDING


def _nth_largest(values: npt.NDArray[np.float64], larger: int) -> float:
    place = len(values) - 1 - larger
    return float(np.partition(values, place)[place])


def _too_few(name: str, n: int, rate_name: str, rate: float, delta: float | None) -> ValueError:
    # The smallest rate that n images can promise, rounded up.
    least = 1 / (n + 1) if delta is None else -math.expm1(math.log(delta) / n)
    least = math.ceil(1000 * least) / 1000
    wider = f", `{rate_name}` of {least:g} or more," if least < 1 else ""
    promise = _percent(rate) + ("" if delta is None else f" with confidence {_percent(1 - delta)}")
    return ValueError(
        f"`{name}` has {n} images, but a promise of at most {promise} needs at least {images_needed(rate, delta)}. "
        f'Give more images{wider} or `method="quantile"`, which promises nothing about new images.'
    )


def _check_promise(rate: Any, name: str, method: str, delta: Any) -> None:
    check_share(rate, name, "(0, 1)", 0.05)
    if method not in ("conformal", "quantile"):
        raise ValueError(f"`method` must be 'conformal' or 'quantile', but is {method!r}.")
    if delta is not None:
        if method == "quantile":
            raise ValueError('`delta` is for `method="conformal"`; a quantile promises nothing about new images.')
        check_share(delta, "delta", "(0, 1)", 0.05)


def _finite(scores: Any, name: str) -> npt.NDArray[np.float64]:
    values = as_scores(scores, name)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise ValueError(
            f"`{name}` has infinite values in {infinite} of {len(values)} scores; find out which images or weights "
            "cause it."
        )
    return values


def _as_labels(labels: Any, images: int, name: str) -> list[int | str]:
    found = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(found) != images:
        raise ValueError(f"`{name}` has {len(found)} labels for {images} images; give one per image.")
    found = [label.item() if isinstance(label, np.generic | Tensor) else label for label in found]
    wrong = [label for label in found if isinstance(label, bool) or not isinstance(label, int | str)]
    if wrong:
        raise ValueError(f"`{name}` must hold whole numbers or strings, but holds {wrong[0]!r}.")
    return found


def _as_p_matrix(values: Any, name: str) -> npt.NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    rows = [as_scores(row, f"{name}[{index}]", min_images=0) for index, row in enumerate(values)]
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError(f"`{name}` must have shape (methods, images) with at least one method.")
    return _check_p_values(np.stack(rows), name)


def _check_p_values(values: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    if ((values < 0) | (values > 1)).any():
        raise ValueError(
            f"`{name}` must hold p-values in [0, 1], but holds values from {values.min():g} to {values.max():g}."
        )
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _enumerate(names: Iterable[str], shown: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


__all__ = [
    "Calibration",
    "GroupThreshold",
    "benjamini_hochberg",
    "calibrate",
    "combine_p_values",
    "images_needed",
    "p_values",
    "starting_threshold",
]
