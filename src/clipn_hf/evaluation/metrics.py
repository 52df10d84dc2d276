# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of OOD detection on two arrays of OOD-ness, exact also where scores are equal.

Published tables disagree on what "FPR95" means. With `positive="id"`, the default and the convention of MCM, CLIPN and
NegLabel, it is the share of OOD images accepted when 95 % of the ID images are kept; with `positive="ood"`, the one of
OpenOOD, the share of ID images rejected when 95 % of the OOD images are caught. Say which beside every number.

An image is accepted as ID when its score is at most a threshold. Images with equal scores fall on the same side.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

Scores = npt.ArrayLike | Tensor
Labels = npt.ArrayLike | Tensor

# Counts that one chunk of resamples holds; a few MB for each of the arrays in the computation.
_CHUNK = 2**18


class Interval(NamedTuple):
    """A metric and its confidence interval.

    Args:
        estimate (`float`): The metric on all images.
        low (`float`): Lower end of the interval.
        high (`float`): Upper end of the interval.
    """

    estimate: float
    low: float
    high: float


class Counts(NamedTuple):
    """How many images score at most as much as each distinct score, in ascending order of the scores."""

    id: npt.NDArray[np.int64]  # (..., scores)
    ood: npt.NDArray[np.int64]  # (..., scores)
    correct: npt.NDArray[np.int64]  # (..., scores): ID images with the right label


def auroc(id_scores: Scores, ood_scores: Scores) -> float:
    r"""Compute the area under the ROC curve: the probability that an OOD image scores higher than an ID image.

    \\( P(s_{ood} > s_{id}) + \tfrac{1}{2} P(s_{ood} = s_{id}) \\) over all pairs, the Mann-Whitney statistic, which is
    `sklearn.metrics.roc_auc_score`. It is the same whichever of the two counts as positive.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.

    Returns:
        `float` in [0, 1]; higher = better, 0.5 = chance.

    Raises:
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import auroc
    >>> auroc(id_scores=[0.1, 0.2, 0.6], ood_scores=[0.4, 0.6])
    0.75

    ```
    """
    return float(_auroc(_count(as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores"))))


def aupr(
    id_scores: Scores,
    ood_scores: Scores,
    positive: Literal["id", "ood"] = "id",
    rule: Literal["average_precision", "trapezoid"] = "average_precision",
) -> float:
    r"""Compute the area under the precision-recall curve, known as AUPR-in and AUPR-out.

    With the recall \\( R_k \\) and precision \\( P_k \\) at the \\( k \\)-th distinct score, in the order in which the
    thresholds let images in: \\( \sum_k (R_k - R_{k-1}) P_k \\) for `"average_precision"`, which is
    `sklearn.metrics.average_precision_score`; \\( \sum_k (R_k - R_{k-1}) (P_k + P_{k-1}) / 2 \\) with
    \\( P_0 = 1 \\) for `"trapezoid"`, the rule of OpenOOD and pytorch-ood.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.
        positive (`"id"` or `"ood"`, *optional*, defaults to `"id"`):
            Which images count as positive: `"id"` gives AUPR-in, `"ood"` AUPR-out.
        rule (`"average_precision"` or `"trapezoid"`, *optional*, defaults to `"average_precision"`):
            How the area is summed.

    Returns:
        `float` in [0, 1]; higher = better, the share of positives = chance.

    Raises:
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN; `positive` or `rule` is none
            of those above.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import aupr
    >>> aupr(id_scores=[0.1, 0.5, 0.6], ood_scores=[0.4, 0.9], positive="ood")
    0.75

    ```
    """
    id_values, ood_values = as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores")
    _check_choice(positive, "positive", ("id", "ood"))
    _check_choice(rule, "rule", ("average_precision", "trapezoid"))
    return float(_aupr(_count(id_values, ood_values), positive=positive, rule=rule))


def fpr_at_tpr(
    id_scores: Scores,
    ood_scores: Scores,
    tpr: float = 0.95,
    positive: Literal["id", "ood"] = "id",
    rule: Literal["exact", "nearest", "linear"] = "exact",
) -> float:
    r"""Compute the false-positive rate at the operating point where the true-positive rate reaches `tpr`.

    `rule="exact"` takes the smallest false-positive rate among all thresholds whose true-positive rate is at least
    `tpr`. With `positive="id"`: the smallest \\( t \\) with \\( P(s_{id} \le t) \ge \mathrm{tpr} \\), then
    \\( P(s_{ood} \le t) \\). The two others repeat published code. They differ from it where scores are
    equal and, upwards, where a threshold meets `tpr` exactly, as it can with 20, 40, 60, … positives:

    - `"nearest"`, of MCM, GL-MCM, LoCoOp and NegLabel: the threshold whose true-positive rate is nearest to `tpr`,
      above or below. Of equally near ones it is the one that lets most images in, yet none after the last positive.
    - `"linear"`, of CLIPN and PLP: linear interpolation between the points of the ROC curve, the last point where
      several have the same true-positive rate.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.
        tpr (`float`, *optional*, defaults to 0.95): Share of the positives to keep, in (0, 1].
        positive (`"id"` or `"ood"`, *optional*, defaults to `"id"`): Which images count as positive.
        rule (`"exact"`, `"nearest"` or `"linear"`, *optional*, defaults to `"exact"`):
            Which threshold, as explained above.

    Returns:
        `float` in [0, 1]; lower = better.

    Raises:
        TypeError: `tpr` is not a number.
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN; `tpr` is outside (0, 1];
            `positive` or `rule` is none of those above.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import fpr_at_tpr
    >>> fpr_at_tpr(id_scores=[0.1, 0.2, 0.6], ood_scores=[0.4, 0.6, 0.9, 0.9])
    0.5

    ```
    """
    id_values, ood_values = as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores")
    check_share(tpr, "tpr", "(0, 1]", 0.95)
    _check_choice(positive, "positive", ("id", "ood"))
    _check_choice(rule, "rule", ("exact", "nearest", "linear"))
    return float(_fpr_at_tpr(_count(id_values, ood_values), tpr=tpr, positive=positive, rule=rule))


def detection_accuracy(id_scores: Scores, ood_scores: Scores) -> float:
    r"""Compute the accuracy of the best threshold when ID and OOD images are equally frequent.

    \\( \max_t \tfrac{1}{2} \left( P(s_{id} \le t) + P(s_{ood} > t) \right) \\), that is 1 minus the detection error.
    The threshold is chosen on the same images, hence the value is optimistic on few of them.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.

    Returns:
        `float` in [0.5, 1]; higher = better.

    Raises:
        ValueError: An argument is empty, not one-dimensional, not numeric, or holds NaN.

    Source: Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks", ICLR
    2018, https://arxiv.org/abs/1706.02690, section 4.2 (detection error).

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import detection_accuracy
    >>> detection_accuracy(id_scores=[0.1, 0.2, 0.6, 0.7], ood_scores=[0.4, 0.9])
    0.75

    ```
    """
    return float(_detection_accuracy(_count(as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores"))))


def id_accuracy(predictions: Labels, labels: Labels) -> float:
    """Compute the share of ID images whose predicted label is the right one, whatever their OOD-ness.

    Args:
        predictions (array, tensor or list of shape `(images,)`): Predicted label of each ID image: numbers or strings.
        labels (array, tensor or list of shape `(images,)`): The right ones, in the same form.

    Returns:
        `float` in [0, 1]; higher = better.

    Raises:
        ValueError: An argument is empty, not one-dimensional, or holds other things than numbers or strings; the two
            do not match.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import id_accuracy
    >>> id_accuracy(predictions=["cat", "dog", "dog", "car"], labels=["cat", "dog", "cat", "car"])
    0.75

    ```
    """
    return float(np.mean(_check_labels(predictions, labels)))


def aurc(id_scores: Scores, predictions: Labels, labels: Labels, ood_scores: Scores | None = None) -> float:
    r"""Compute the area under the risk-coverage curve: the mean error rate among the images kept, over all coverages.

    \\( \frac{1}{n} \sum_{k=1}^{n} \frac{1}{k} \sum_{i \le k} \mathrm{wrong}_i \\) over the \\( n \\) images in
    ascending order of OOD-ness. Among equal scores it is the mean over all their orders. With `ood_scores`, OOD images
    take part and are always wrong, since no label suits them.

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        predictions (array, tensor or list of shape `(images,)`): Predicted label of each ID image: numbers or strings.
        labels (array, tensor or list of shape `(images,)`): The right ones, in the same form.
        ood_scores (array, tensor or list of shape `(images,)`, *optional*): OOD-ness of OOD images.

    Returns:
        `float` in [0, 1]; lower = better.

    Raises:
        ValueError: An argument is empty, not one-dimensional, of the wrong type, or holds NaN; `predictions` or
            `labels` do not match `id_scores`.

    Source: Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019,
    https://arxiv.org/abs/1805.08206, section 2.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import aurc
    >>> aurc(id_scores=[0.1, 0.2, 0.6, 0.9], predictions=[0, 1, 1, 0], labels=[0, 1, 1, 1])
    0.0625

    ```
    """
    id_values = as_scores(id_scores, "id_scores")
    ood_values = np.empty(0) if ood_scores is None else as_scores(ood_scores, "ood_scores")
    return float(_aurc(_count(id_values, ood_values, _check_labels(predictions, labels, len(id_values)))))


def oscr(id_scores: Scores, ood_scores: Scores, predictions: Labels, labels: Labels) -> float:
    r"""Compute the area under the open-set classification rate curve.

    The curve has the share of OOD images accepted (FPR) on one axis and the share of ID images both accepted and
    correctly classified (CCR) on the other. Summed by trapezoids, the area is the share of pairs where the ID image is
    correctly classified and scores lower than the OOD image, pairs of equal scores counted half:
    \\( P(\mathrm{correct}, s_{id} < s_{ood}) + \tfrac{1}{2} P(\mathrm{correct}, s_{id} = s_{ood}) \\).

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.
        predictions (array, tensor or list of shape `(images,)`): Predicted label of each ID image: numbers or strings.
        labels (array, tensor or list of shape `(images,)`): The right ones, in the same form.

    Returns:
        `float` in [0, ID accuracy], and not above the AUROC; higher = better.

    Raises:
        ValueError: An argument is empty, not one-dimensional, of the wrong type, or holds NaN; `predictions` or
            `labels` do not match `id_scores`.

    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018,
    https://arxiv.org/abs/1811.04110, section 4.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import oscr
    >>> oscr(id_scores=[0.1, 0.2, 0.6], ood_scores=[0.4, 0.6], predictions=[0, 1, 1], labels=[0, 0, 1])
    0.4166666666666667

    ```
    """
    id_values, ood_values = as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores")
    return float(_oscr(_count(id_values, ood_values, _check_labels(predictions, labels, len(id_values)))))


def ccr_at_fpr(id_scores: Scores, ood_scores: Scores, predictions: Labels, labels: Labels, fpr: float = 0.01) -> float:
    r"""Compute the correct classification rate when the share `fpr` of OOD images may be accepted.

    \\( \max_t P(\mathrm{correct}, s_{id} \le t) \\) over the thresholds with
    \\( P(s_{ood} \le t) \le \mathrm{fpr} \\).

    Args:
        id_scores (array, tensor or list of shape `(images,)`): OOD-ness of ID images.
        ood_scores (array, tensor or list of shape `(images,)`): OOD-ness of OOD images.
        predictions (array, tensor or list of shape `(images,)`): Predicted label of each ID image: numbers or strings.
        labels (array, tensor or list of shape `(images,)`): The right ones, in the same form.
        fpr (`float`, *optional*, defaults to 0.01): Share of OOD images that may be accepted, in [0, 1].

    Returns:
        `float` in [0, ID accuracy]; higher = better.

    Raises:
        TypeError: `fpr` is not a number.
        ValueError: An argument is empty, not one-dimensional, of the wrong type, or holds NaN; `predictions` or
            `labels` do not match `id_scores`; `fpr` is outside [0, 1].

    Source: Dhamija, Günther and Boult, "Reducing Network Agnostophobia", NeurIPS 2018,
    https://arxiv.org/abs/1811.04110, section 4.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import ccr_at_fpr
    >>> ccr_at_fpr([0.1, 0.2, 0.6, 0.7], [0.4, 0.6], predictions=[0, 0, 1, 1], labels=[0, 0, 1, 1], fpr=0.5)
    0.5

    ```
    """
    id_values, ood_values = as_scores(id_scores, "id_scores"), as_scores(ood_scores, "ood_scores")
    correct = _check_labels(predictions, labels, len(id_values))
    check_share(fpr, "fpr", "[0, 1]", 0.01)
    return float(_ccr_at_fpr(_count(id_values, ood_values, correct), fpr=fpr))


def bootstrap_interval(
    metric: Callable[..., float],
    id_scores: Scores | None = None,
    ood_scores: Scores | None = None,
    *,
    predictions: Labels | None = None,
    labels: Labels | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    **arguments: Any,
) -> Interval:
    """Compute a metric and its bootstrap percentile interval over images.

    Each resample draws as many ID images and, independently, as many OOD images as there are, with replacement. The
    interval runs between the quantiles `(1 - confidence) / 2` and `(1 + confidence) / 2` of the resampled metric. It
    tells how the metric varies with the images, not with training runs or prompts, and is too narrow on a few dozen
    images. The metrics of this module are computed on many resamples at once, in chunks of bounded memory; the result
    does not depend on the chunks. Other metrics are called once per resample.

    Args:
        metric (function):
            A metric of this module, or any function that takes the data given below by their names and `arguments`.
        id_scores (array, tensor or list of shape `(images,)`, *optional*):
            OOD-ness of ID images. Only `id_accuracy` works without.
        ood_scores (array, tensor or list of shape `(images,)`, *optional*):
            OOD-ness of OOD images, for the metrics that need them.
        predictions (array, tensor or list of shape `(images,)`, *optional*):
            Predicted label of each ID image, for the metrics that need them.
        labels (array, tensor or list of shape `(images,)`, *optional*):
            The right ones, in the same form.
        resamples (`int`, *optional*, defaults to 1000):
            How many times to draw.
        confidence (`float`, *optional*, defaults to 0.95):
            Share of the resampled values within the interval, in (0, 1).
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws; belongs in the record of the result.
        **arguments:
            Further arguments of the metric, such as `positive="ood"`.

    Returns:
        [`Interval`]: `estimate`, `low` and `high`.

    Raises:
        TypeError: The metric lacks data that it needs or does not take data or an argument given; a number is none.
        ValueError: As the metric; `resamples` is less than 1, `confidence` outside (0, 1), `seed` negative; the metric
            returned NaN for a resample.

    Example:

    ```python
    >>> from clipn_hf.evaluation.metrics import bootstrap_interval, fpr_at_tpr
    >>> interval = bootstrap_interval(fpr_at_tpr, range(0, 100), range(50, 150), tpr=0.9)
    >>> interval.estimate, interval.low <= 0.4 <= interval.high
    (0.4, True)

    ```
    """
    for name, value, least in (("resamples", resamples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or operator.index(value) < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, but is {value!r}.")
    check_share(confidence, "confidence", "(0, 1)", 0.95)
    id_data = {"id_scores": id_scores, "predictions": predictions, "labels": labels}
    id_arrays = {name: _as_array(values) for name, values in id_data.items() if values is not None}
    ood_arrays = {} if ood_scores is None else {"ood_scores": _as_array(ood_scores)}
    given = {**id_arrays, **ood_arrays, **arguments}
    needed = [
        name
        for name, parameter in inspect.signature(metric).parameters.items()
        if parameter.default is parameter.empty
    ]
    lacking = [
        name for name in needed if name in ("id_scores", "ood_scores", "predictions", "labels") and name not in given
    ]
    if lacking:
        missing = ", ".join(f"`{name}`" for name in lacking)
        raise TypeError(f"{getattr(metric, '__name__', 'The metric')} needs {missing}, too; pass it by name.")
    estimate = float(metric(**id_arrays, **ood_arrays, **arguments))

    sizes = {name: len(values) for name, values in id_arrays.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"The data of the ID images must have one value per image, but got {sizes or 'none'}.")
    if metric in KERNELS:
        unscored = np.zeros(next(iter(sizes.values())))
        id_values = as_scores(id_arrays.get("id_scores", unscored), "id_scores")
        ood_values = as_scores(ood_arrays["ood_scores"], "ood_scores") if ood_arrays else np.empty(0)
        correct = _check_labels(id_arrays["predictions"], id_arrays["labels"]) if "labels" in id_arrays else None
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(metric).parameters.items()
            if parameter.default is not parameter.empty and name != "ood_scores"
        }
        kernel = KERNELS[metric]
        chunks = resample_counts(id_values, ood_values, correct, resamples, seed)
        values = np.concatenate([kernel(counts, **(defaults | arguments)) for counts in chunks])
    else:
        draws = zip(
            draw_images(next(iter(sizes.values())), resamples, seed, stream=0),
            draw_images(len(ood_arrays.get("ood_scores", ())), resamples, seed, stream=1),
            strict=True,
        )
        values = np.array(
            [
                metric(
                    **{name: data[id_draw[0]] for name, data in id_arrays.items()},
                    **{name: data[ood_draw[0]] for name, data in ood_arrays.items()},
                    **arguments,
                )
                for id_draw, ood_draw in draws
            ],
            dtype=np.float64,
        )
    if np.isnan(values).any():
        raise ValueError(f"`metric` returned NaN for {int(np.isnan(values).sum())} of {resamples} resamples.")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def as_scores(scores: Any, name: str, min_images: int = 1) -> npt.NDArray[np.float64]:
    """Copy scores to a float64 array, in which their order and their equalities stay as they are.

    Args:
        scores (array, tensor or list of shape `(images,)`): Real numbers; infinite ones have a rank like others.
        name (`str`): The argument, for the error.
        min_images (`int`, *optional*, defaults to 1): How many are needed.

    Returns:
        `numpy.ndarray` of shape `(images,)`, float64.

    Raises:
        ValueError: There are too few, they are not one-dimensional or not numeric, one is NaN or a whole number beyond
            2**53.
    """
    values = _as_array(scores, name)
    if values.ndim != 1:
        raise ValueError(f"`{name}` must have one dimension, one score per image, but has shape {values.shape}.")
    if len(values) < min_images:
        found = f"has {len(values)} scores" if len(values) else "is empty"
        raise ValueError(f"`{name}` {found}; give at least {min_images}.")
    if values.dtype.kind not in "biuf" and len(values):
        raise ValueError(f"`{name}` must be an array of numbers, but holds {values.dtype}.")
    copy = values.astype(np.float64)
    nans = int(np.isnan(copy).sum())
    if nans:
        raise ValueError(
            f"`{name}` has NaN in {nans} of {len(copy)} scores; find out which images or weights cause it."
        )
    if values.dtype.kind in "iu" and len(copy) and np.abs(copy).max() > 2**53:
        raise ValueError(
            f"`{name}` has whole numbers up to {np.abs(copy).max():g}, of which float64 cannot tell neighbours apart; "
            "give ranks, or scores below 2**53."
        )
    return copy


def check_share(value: Any, name: str, bounds: Literal["(0, 1)", "(0, 1]", "[0, 1]"], example: float) -> None:
    """Make sure that `value` is a number within `bounds`.

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number in {bounds}, such as {example}, but is {value!r}.")
    number = float(value)
    above = number > 0 or (number == 0 and bounds[0] == "[")
    below = number < 1 or (number == 1 and bounds[-1] == "]")
    if not (above and below):
        raise ValueError(f"`{name}` must be a number in {bounds}, such as {example}, but is {value!r}.")


def most_within(share: float, total: int) -> int:
    """Return the largest whole number that is at most the given share of `total`, unharmed by rounding errors."""
    # 0.05 of 20 is 1, also where the product of the floats falls short of it or exceeds it.
    count = min(total, math.floor(share * total) + 1)
    while count / total > share:
        count -= 1
    return count


def _as_array(values: Any, name: str = "An argument") -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers or strings of one dimension ({error}).") from error


def _check_labels(predictions: Any, labels: Any, images: int | None = None) -> npt.NDArray[np.bool_]:
    """Return which predictions are right."""
    arrays = []
    for name, values in (("predictions", predictions), ("labels", labels)):
        array = _as_array(values, name)
        if array.ndim != 1:
            raise ValueError(f"`{name}` must have one dimension, one label per ID image, but has shape {array.shape}.")
        if len(array) == 0:
            raise ValueError(f"`{name}` is empty; give one label per ID image.")
        if array.dtype == object and all(isinstance(label, str) for label in array):
            array = array.astype(str)
        if array.dtype.kind not in "biufU" or (array.dtype.kind == "f" and np.isnan(array).any()):
            raise ValueError(f"`{name}` must hold numbers without NaN or strings, but holds {array.dtype}.")
        if images is not None and len(array) != images:
            raise ValueError(f"`{name}` has {len(array)} labels for {images} ID images; give one per image.")
        arrays.append(array)
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"`predictions` has {len(arrays[0])} labels, but `labels` has {len(arrays[1])}.")
    if len({array.dtype.kind == "U" for array in arrays}) == 2:
        raise ValueError("`predictions` and `labels` must both be numbers or both be strings; convert one of them.")
    correct: npt.NDArray[np.bool_] = arrays[0] == arrays[1]
    return correct


def _check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}, but is {value!r}.")


def _count(
    id_values: npt.NDArray[np.float64],
    ood_values: npt.NDArray[np.float64],
    correct: npt.NDArray[np.bool_] | None = None,
) -> Counts:
    right = np.empty(0) if correct is None else np.sort(id_values[correct])
    id_values, ood_values = np.sort(id_values), np.sort(ood_values)
    merged = np.concatenate((id_values, ood_values))
    merged.sort(kind="stable")  # merges the two sorted halves
    ends = np.append(np.flatnonzero(merged[1:] != merged[:-1]) + 1, len(merged))
    distinct = merged[ends - 1]
    id_counts = np.searchsorted(id_values, distinct, side="right")
    return Counts(id_counts, ends - id_counts, np.searchsorted(right, distinct, side="right"))


def resample_counts(
    id_values: npt.NDArray[np.float64],
    ood_values: npt.NDArray[np.float64],
    correct: npt.NDArray[np.bool_] | None,
    resamples: int,
    seed: int,
) -> Iterator[Counts]:
    """Count in resamples, a chunk of them at a time: arrays of shape `(resamples in the chunk, scores)`."""
    distinct = np.unique(np.concatenate((id_values, ood_values)))
    id_places, ood_places = np.searchsorted(distinct, id_values), np.searchsorted(distinct, ood_values)
    # Images with a wrong label go to one more place, which is not looked at.
    correct_places = None if correct is None else np.where(correct, id_places, len(distinct))

    def count(places: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        rows = np.arange(len(places))[:, None] * (len(distinct) + 1)
        counts = np.bincount((places + rows).ravel(), minlength=len(places) * (len(distinct) + 1))
        return counts.reshape(len(places), -1)[:, :-1].cumsum(axis=1)

    rows = max(1, _CHUNK // (len(id_values) + len(ood_values)))
    draws = zip(
        draw_images(len(id_values), resamples, seed, stream=0, rows=rows),
        draw_images(len(ood_values), resamples, seed, stream=1, rows=rows),
        strict=True,
    )
    for id_draw, ood_draw in draws:
        id_counts = count(id_places[id_draw])
        right = np.zeros_like(id_counts) if correct_places is None else count(correct_places[id_draw])
        yield Counts(id_counts, count(ood_places[ood_draw]), right)


def draw_images(images: int, resamples: int, seed: int, stream: int, rows: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Draw images with replacement: indices of shape `(rows or fewer, images)`, the same for every number of rows."""
    generator = np.random.default_rng([seed, stream])
    for start in range(0, resamples, rows):
        shape = min(rows, resamples - start), images
        yield generator.integers(images, size=shape) if images else np.zeros(shape, dtype=np.int64)


# Each metric on cumulative counts of shape (..., scores): one formula for the images themselves and for resamples, in
# which a distinct score may have no image.


def _in_order(counts: Counts, positive: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the true and the false positives as thresholds let more and more images in."""
    if positive == "id":
        return counts.id, counts.ood
    from_above = [np.flip(values[..., -1:] - _before(values), axis=-1) for values in (counts.ood, counts.id)]
    return from_above[0], from_above[1]


def _before(cumulative: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Shift cumulative values by one place."""
    shifted = np.zeros_like(cumulative)
    shifted[..., 1:] = cumulative[..., :-1]
    return shifted


def _auroc(counts: Counts) -> npt.NDArray[np.float64]:
    return _pairs(counts.id, counts.ood) / (2 * counts.id[..., -1] * counts.ood[..., -1])


def _pairs(lower: npt.NDArray[np.int64], higher: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count twice the pairs in the right order and once the equal ones."""
    return ((higher - _before(higher)) * (lower + _before(lower))).sum(axis=-1)


def _aupr(counts: Counts, *, positive: str, rule: str) -> npt.NDArray[np.float64]:
    true, false = _in_order(counts, positive)
    accepted = true + false
    # Before the first image is let in, precision is 1.
    precision = np.divide(true, accepted, out=np.ones(accepted.shape), where=accepted > 0)
    if rule == "trapezoid":
        last = _before(precision)
        last[..., 0] = 1
        precision = (precision + last) / 2
    return ((true - _before(true)) * precision).sum(axis=-1) / true[..., -1]


def _fpr_at_tpr(counts: Counts, *, tpr: float, positive: str, rule: str) -> npt.NDArray[np.float64]:
    true, false = _in_order(counts, positive)
    tpr_curve = true / true[..., -1:]
    if rule == "linear":
        return _interpolate(tpr_curve, false / false[..., -1:], tpr)
    if rule == "nearest":
        distance = np.abs(tpr_curve - tpr)
        # Once all positives are in, only the first threshold counts.
        distance[_before(tpr_curve) == 1] = np.inf
        place = distance.shape[-1] - 1 - np.argmin(np.flip(distance, axis=-1), axis=-1)
    else:
        place = np.argmax(tpr_curve >= tpr, axis=-1)
    return _take(false, place) / false[..., -1]


def _interpolate(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], at: float) -> npt.NDArray[np.float64]:
    """Interpolate linearly along the last axis between the origin and the points, from the last one not above `at`."""
    place = (x <= at).sum(axis=-1)
    after = np.minimum(place, x.shape[-1] - 1)
    x_low = np.where(place > 0, _take(x, np.maximum(place - 1, 0)), 0)
    y_low = np.where(place > 0, _take(y, np.maximum(place - 1, 0)), 0)
    run, rise = _take(x, after) - x_low, _take(y, after) - y_low
    return y_low + rise * np.divide(at - x_low, run, out=np.zeros(run.shape), where=run > 0)


def _take(values: npt.NDArray[Any], place: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Pick one value of each row."""
    return np.take_along_axis(values, place[..., None], axis=-1)[..., 0]


def _detection_accuracy(counts: Counts) -> npt.NDArray[np.float64]:
    gain = counts.id / counts.id[..., -1:] - counts.ood / counts.ood[..., -1:]
    return (1 + gain.max(axis=-1)) / 2


def _id_accuracy(counts: Counts) -> npt.NDArray[np.float64]:
    return counts.correct[..., -1] / counts.id[..., -1]


@functools.lru_cache(maxsize=1)
def _harmonic_numbers(last: int) -> npt.NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(1 / np.arange(1, last + 1))))


def _aurc(counts: Counts) -> npt.NDArray[np.float64]:
    kept = counts.id + counts.ood
    wrong = kept - counts.correct
    kept_before, wrong_before = _before(kept), _before(wrong)
    group, wrong_in_group = kept - kept_before, wrong - wrong_before
    # In a random order of a group of equal scores, errors grow linearly: after k images in all, the expected risk is
    # `share + (wrong_before - share * kept_before) / k`, whose sum over the group has harmonic numbers in it.
    harmonic = _harmonic_numbers(int(kept[..., -1].max()))[kept]
    share = wrong_in_group / np.maximum(group, 1)
    tied = wrong_in_group + (wrong_before - share * kept_before) * (harmonic - _before(harmonic))
    # The difference of harmonic numbers loses digits, which a single image need not.
    risk = np.where(group == 1, wrong / np.maximum(kept, 1), tied)
    return risk.sum(axis=-1) / kept[..., -1]


def _oscr(counts: Counts) -> npt.NDArray[np.float64]:
    return _pairs(counts.correct, counts.ood) / (2 * counts.id[..., -1] * counts.ood[..., -1])


def _ccr_at_fpr(counts: Counts, *, fpr: float) -> npt.NDArray[np.float64]:
    allowed = most_within(fpr, int(counts.ood[..., -1].max()))  # resamples all have the same number of images
    place = (counts.ood <= allowed).sum(axis=-1)
    correct = np.where(place > 0, _take(counts.correct, np.maximum(place - 1, 0)), 0)
    return correct / counts.id[..., -1]


KERNELS: dict[Callable[..., float], Callable[..., npt.NDArray[np.float64]]] = {
    auroc: _auroc,
    aupr: _aupr,
    fpr_at_tpr: _fpr_at_tpr,
    detection_accuracy: _detection_accuracy,
    id_accuracy: _id_accuracy,
    aurc: _aurc,
    oscr: _oscr,
    ccr_at_fpr: _ccr_at_fpr,
}

__all__ = [
    "Interval",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "ccr_at_fpr",
    "detection_accuracy",
    "fpr_at_tpr",
    "id_accuracy",
    "oscr",
]
