# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Thresholds, p-values and their promises, in exact arithmetic and in seeded simulation."""

import doctest
import json
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clipn_hf import calibration as module
from clipn_hf.calibration import (
    Calibration,
    GroupThreshold,
    benjamini_hochberg,
    calibrate,
    combine_p_values,
    images_needed,
    p_values,
    starting_threshold,
)
from clipn_hf.scores import mcm

percents = st.integers(1, 99)
tied_scores = st.lists(st.integers(0, 9).map(lambda value: value / 4), min_size=1, max_size=60)


def normal(seed: int, *shape: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def exact_tail(n: int, allowed: int, rate: Fraction) -> Fraction:
    """P(Bin(n, rate) <= allowed)."""
    return sum((math.comb(n, j) * rate**j * (1 - rate) ** (n - j) for j in range(allowed + 1)), Fraction(0))


# --- which score becomes the threshold


@given(tied_scores, percents)
def test_quantile_is_the_smallest_threshold(scores: list[float], percent: int) -> None:
    rate = Fraction(percent, 100)
    threshold = calibrate(scores, percent / 100, method="quantile").threshold

    def rejected(candidate: float) -> Fraction:
        return Fraction(sum(score > candidate for score in scores), len(scores))

    assert rejected(threshold) <= rate
    assert all(rejected(score) > rate for score in scores if score < threshold)


@given(tied_scores, percents)
def test_conformal_threshold_is_an_exact_order_statistic(scores: list[float], percent: int) -> None:
    rank = math.ceil((len(scores) + 1) * (1 - Fraction(percent, 100)))
    if rank > len(scores):
        with pytest.raises(ValueError, match="needs at least"):
            calibrate(scores, percent / 100)
    else:
        assert calibrate(scores, percent / 100).threshold == sorted(scores)[rank - 1]


@given(tied_scores, percents, tied_scores)
def test_threshold_and_p_values_agree(scores: list[float], percent: int, new: list[float]) -> None:
    """Without a threshold, too, since then no p-value is that small."""
    small = p_values(scores, new) <= percent / 100
    if len(scores) >= images_needed(percent / 100):
        assert (calibrate(scores, percent / 100).is_ood(new) == small).all()
    else:
        assert not small.any()


@given(st.integers(1, 60), st.sampled_from([1, 5, 10, 25, 50, 90]), st.sampled_from([1, 5, 10, 50, 75, 99]))
def test_confident_threshold_uses_the_exact_binomial_tail(n: int, percent: int, delta_percent: int) -> None:
    rate, delta = Fraction(percent, 100), Fraction(delta_percent, 100)
    allowed = [j for j in range(n) if exact_tail(n, j, rate) <= delta]
    if allowed:
        assert calibrate(range(n), percent / 100, delta=delta_percent / 100).threshold == n - 1 - max(allowed)
    else:
        with pytest.raises(ValueError, match="needs at least"):
            calibrate(range(n), percent / 100, delta=delta_percent / 100)


@pytest.mark.parametrize(("n", "rate", "delta"), [(1000, 0.05, 0.05), (50_000, 0.01, 0.001), (1_000_000, 0.05, 0.1)])
def test_confident_threshold_is_right_for_many_images(n: int, rate: float, delta: float) -> None:
    allowed = n - 1 - int(calibrate(np.arange(n), rate, delta=delta).threshold)
    assert stats.binom.cdf(allowed, n, rate) <= delta < stats.binom.cdf(allowed + 1, n, rate)
    # The same through the distribution of the false-rejection rate, Beta(allowed + 1, n - allowed).
    assert stats.beta.sf(rate, allowed + 1, n - allowed) <= delta


@given(st.integers(1, 300), percents)
def test_images_needed_is_the_least_that_works(n: int, percent: int) -> None:
    for delta in (None, 0.05, 0.5):
        needed = images_needed(percent / 100, delta)
        if n >= needed:
            calibrate(range(n), percent / 100, delta=delta)
        else:
            with pytest.raises(ValueError, match=f"has {n} images, .* needs at least {needed}"):
                calibrate(range(n), percent / 100, delta=delta)


def test_images_needed_is_the_known_number() -> None:
    assert [images_needed(rate) for rate in (0.5, 0.1, 0.05, 0.01, 0.001)] == [1, 9, 19, 99, 999]
    assert [images_needed(rate, 0.05) for rate in (0.5, 0.1, 0.05, 0.01)] == [5, 29, 59, 299]
    assert images_needed(0.5, 0.5) == 1
    assert images_needed(1e-9) == 10**9 - 1


def test_three_images() -> None:
    with pytest.raises(ValueError, match="`id_scores` has 3 images.*at most 5 % needs at least 19.*0.25 or more"):
        calibrate([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="at most 5 % with confidence 90 % needs at least 45"):
        calibrate([0.1, 0.2, 0.3], delta=0.1)
    assert calibrate([0.1, 0.3, 0.2], max_id_rejection=0.25).threshold == 0.3
    assert calibrate([0.1, 0.3, 0.2], max_id_rejection=0.5).threshold == 0.2
    assert calibrate([0.1, 0.3, 0.2], method="quantile").threshold == 0.3


def test_the_rate_named_in_the_error_works() -> None:
    for n in (1, 3, 7, 18):
        for delta in (None, 0.1):
            with pytest.raises(ValueError, match="or more") as error:
                calibrate(range(n), 0.01, delta=delta)
            named = float(str(error.value).split("`max_id_rejection` of ")[1].split(" or")[0])
            calibrate(range(n), named, delta=delta)


def test_equal_scores_reject_nothing() -> None:
    calibration = calibrate([0.5] * 19)
    assert calibration.threshold == 0.5
    assert calibration.is_ood([0.5, np.nextafter(0.5, 1)]).tolist() == [False, True]


def test_float32_scores_meet_their_threshold_exactly() -> None:
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(scores, 0.1)
    assert (scores > calibration.threshold).sum() == calibration.is_ood(scores).sum() == 19
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))).is_ood(scores).sum() == 19


# --- promises on new images


def test_conformal_promise_holds_on_average() -> None:
    """With n = 39 and 10 %, the false-rejection rate has mean 4 / 40 over calibration sets."""
    rates = [stats.norm.sf(calibrate(scores, 0.1).threshold) for scores in normal(0, 4000, 39)]
    assert np.mean(rates) == pytest.approx(0.1, abs=4 * np.std(rates) / math.sqrt(4000))


def test_conformal_promise_holds_with_ties() -> None:
    """Six possible scores: on average, at most 10 % of new ID images are above the threshold."""
    random = np.random.default_rng(0)
    rates = [1 - (calibrate(scores, 0.1).threshold + 1) / 6 for scores in random.integers(0, 6, (4000, 39))]
    assert np.mean(rates) <= 0.1


def test_quantile_breaks_what_conformal_promises() -> None:
    """With n = 10 and 10 %, one of ten may lie above, which makes the mean false-rejection rate 2 / 11."""
    rates = [stats.norm.sf(calibrate(scores, 0.1, "quantile").threshold) for scores in normal(1, 4000, 10)]
    assert np.mean(rates) == pytest.approx(2 / 11, abs=4 * np.std(rates) / math.sqrt(4000))


@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_confident_promise_holds_for_that_share_of_calibration_sets(delta: float) -> None:
    n, rate = 80, 0.1
    broken = np.mean(
        [stats.norm.sf(calibrate(scores, rate, delta=delta).threshold) > rate for scores in normal(1, 4000, n)]
    )
    allowed = n - 1 - int(calibrate(range(n), rate, delta=delta).threshold)
    expected = stats.binom.cdf(allowed, n, rate)
    assert expected <= delta
    assert broken == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


def test_group_promise_holds_where_the_joint_one_fails() -> None:
    """One label has higher scores than the other. A joint threshold rejects the first label's images far too often."""
    joint, grouped = [], []
    for scores in normal(2, 1500, 58):
        labels = ["easy"] * 29 + ["hard"] * 29
        shifted = scores + np.repeat([0.0, 3.0], 29)
        calibration = calibrate(shifted, 0.1, labels=labels)
        thresholds = {group.label: group.threshold for group in calibration.groups}
        joint.append(stats.norm.sf(calibration.threshold - 3))
        grouped.append((stats.norm.sf(thresholds["easy"]), stats.norm.sf(thresholds["hard"] - 3)))
    assert np.mean(joint) > 0.15
    for rates in zip(*grouped, strict=True):
        assert np.mean(rates) == pytest.approx(0.1, abs=4 * np.std(rates) / math.sqrt(1500))


@pytest.mark.parametrize("gap", [0.5, 2.0, 6.0])
def test_both_promises_of_three_answers_hold(gap: float) -> None:
    """Also where the two thresholds cross, because ID and OOD images are far apart."""
    new_id, new_ood = normal(10, 200), normal(11, 200) + gap
    wrong_id, wrong_ood, unsure = [], [], []
    for id_scores, ood_scores in zip(normal(3, 800, 39), normal(4, 800, 39) + gap, strict=True):
        calibration = calibrate(id_scores, 0.1, ood_scores=ood_scores, max_ood_acceptance=0.2)
        assert calibration.known_below is not None
        wrong_id.append(stats.norm.sf(calibration.threshold))
        wrong_ood.append(stats.norm.cdf(min(calibration.known_below, calibration.threshold) - gap))
        if len(unsure) < 20:
            unsure.append(calibration.answers(np.concatenate([new_id, new_ood])).count("unsure"))
    assert np.mean(wrong_id) <= 0.1 + 4 * np.std(wrong_id) / math.sqrt(800)
    assert np.mean(wrong_ood) <= 0.2 + 4 * np.std(wrong_ood) / math.sqrt(800)
    assert (max(unsure) == 0) == (gap == 6.0)


def test_three_answers_at_their_bounds() -> None:
    calibration = calibrate(range(9), 0.2, ood_scores=range(4, 13), max_ood_acceptance=0.2)
    assert (calibration.known_below, calibration.threshold) == (5, 7)
    assert calibration.answers([4.9, 5, 7, 7.1]) == ["known", "unsure", "unsure", "unknown"]
    crossed = calibrate(range(9), 0.2, ood_scores=range(14, 23), max_ood_acceptance=0.2)
    assert crossed.answers([7, 7.1, 14.9, 15]) == ["known", "unknown", "unknown", "unknown"]
    assert calibrate(range(9), 0.2).answers([7, 7.1]) == ["known", "unknown"]
    with pytest.raises(ValueError, match="`ood_scores` has 3 images, .* needs at least 19"):
        calibrate(range(19), ood_scores=[1, 2, 3])


def test_groups_keep_their_labels_and_thresholds() -> None:
    calibration = calibrate([*range(9), *range(100, 109)], 0.2, labels=[1] * 9 + [0] * 9)
    assert calibration.groups == (GroupThreshold(0, 107.0, 9), GroupThreshold(1, 7.0, 9))
    assert calibration.is_ood([50, 50], [0, 1]).tolist() == [False, True]
    assert calibration.is_ood([50, 50], torch.tensor([0, 1])).tolist() == [False, True]
    assert calibration.is_ood([], []).tolist() == []
    with pytest.raises(ValueError, match="`labels` is missing"):
        calibration.is_ood([50])
    with pytest.raises(ValueError, match="labels without a threshold: 2"):
        calibration.is_ood([50], [2])
    with pytest.raises(ValueError, match="`labels` has 1 labels for 2 images"):
        calibration.is_ood([50, 60], [0])
    with pytest.raises(ValueError, match=r"too few images for 2 of 3 labels: b \(1\), c \(2\); each needs at least 4"):
        calibrate(range(20), 0.2, labels=["a"] * 17 + ["b"] + ["c"] * 2)
    with pytest.raises(ValueError, match="whole numbers or strings, but holds 0.5"):
        calibrate(range(20), 0.2, labels=[0.5] * 20)


# --- the record


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"method": "quantile"},
        {"delta": 0.1, "max_id_rejection": 0.2},
        {"labels": ["cat", "dog"] * 30},
        {"labels": np.arange(60) % 2, "ood_scores": range(30, 90), "max_ood_acceptance": 0.1},
    ],
)
def test_json_round_trip(arguments: dict[str, Any]) -> None:
    calibration = calibrate(normal(0, 60), **arguments)
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration
    assert json.loads(text)["promise"] == calibration.promise
    with pytest.raises(AttributeError):
        calibration.threshold = 0.0  # type: ignore[misc]


def test_promise_says_what_holds() -> None:
    scores = normal(0, 200)
    marginal = "At most 5 % of new ID images like the calibration images are called unknown, on average over draws of"
    assert calibrate(scores).promise == f"{marginal} the 200 calibration images."
    assert "at most 5 %" in calibrate(scores, delta=0.1).promise.lower()
    assert "with confidence 90 % over the draw of" in calibrate(scores, delta=0.1).promise
    assert calibrate(scores, method="quantile").promise.startswith("No promise about new images")
    assert calibrate(scores, labels=[0] * 200).promise.startswith("For each label, at most 5 %")
    three = calibrate(scores, ood_scores=scores, max_ood_acceptance=0.2).promise
    assert three.startswith(marginal) and "At most 20 % of new OOD images like the 200 calibration images" in three


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"threshold": float("nan")}, ValueError, "`threshold` must be a finite number"),
        ({"threshold": "0.5"}, ValueError, "`threshold` must be a finite number"),
        ({"n": 0}, ValueError, "`n` must be a whole number"),
        ({"max_id_rejection": 5}, ValueError, "`max_id_rejection` must be"),
        ({"method": "magic"}, ValueError, "`method` must be 'conformal' or 'quantile', but is 'magic'"),
        ({"known_below": 0.1}, ValueError, "belong together"),
        ({"temperature": 1}, ValueError, "temperature missing or not known"),
        ({"groups": [{"label": 0, "threshold": 0.1, "n": 5}] * 2}, ValueError, "several thresholds for one label"),
    ],
)
def test_damaged_records_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    record = calibrate(range(19)).to_dict()
    with pytest.raises(error, match=message):
        Calibration.from_dict(record | changes)
    del record["threshold"]
    with pytest.raises(ValueError, match="threshold missing"):
        Calibration.from_dict(record)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"id_scores": [0.1] * 30 + [float("nan")]}, ValueError, "`id_scores` has NaN in 1 of 31"),
        ({"id_scores": [0.1] * 30 + [float("inf")]}, ValueError, "infinite values in 1 of 31"),
        ({"id_scores": []}, ValueError, "`id_scores` is empty"),
        ({"id_scores": [[0.1]]}, ValueError, "one dimension"),
        ({"max_id_rejection": 0}, ValueError, "`max_id_rejection` must be a number in"),
        ({"max_id_rejection": 1.0}, ValueError, "`max_id_rejection` must be a number in"),
        ({"max_id_rejection": 5}, ValueError, "`max_id_rejection` must be a number in"),
        ({"max_id_rejection": "5 %"}, TypeError, "`max_id_rejection` must be a number in"),
        ({"delta": 0.0}, ValueError, "`delta` must be a number in"),
        ({"delta": 0.1, "method": "quantile"}, ValueError, "`delta` is for"),
        ({"method": "mean"}, ValueError, "`method` must be"),
        ({"ood_scores": [float("nan")]}, ValueError, "`ood_scores` has NaN"),
        ({"ood_scores": [0.1] * 30, "max_ood_acceptance": 2}, ValueError, "`max_ood_acceptance` must be"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrate(**{"id_scores": range(30)} | arguments)


def test_nan_gets_no_answer() -> None:
    calibration = calibrate(range(19))
    for call in (calibration.is_ood, calibration.answers, lambda scores: p_values(range(19), scores)):
        with pytest.raises(ValueError, match="NaN in 1 of 2"):
            call([0.1, float("nan")])
        assert len(call([])) == 0


# --- p-values


@given(tied_scores, tied_scores)
def test_p_values_equal_the_formula(calibration: list[float], scores: list[float]) -> None:
    n = len(calibration)
    assert p_values(calibration, scores).tolist() == [
        (1 + sum(held_out >= score for held_out in calibration)) / (n + 1) for score in scores
    ]


def test_p_values_are_valid() -> None:
    draws = normal(5, 4000, 20)
    values = np.array([p_values(draw[1:], draw[:1])[0] for draw in draws])
    for level in (0.05, 0.1, 0.5):
        assert np.mean(values <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))


@given(st.lists(st.integers(0, 20), max_size=20), st.sampled_from([5, 10, 20, 50]))
def test_benjamini_hochberg_equals_brute_force(numerators: list[int], percent: int) -> None:
    exact = [Fraction(numerator, 20) for numerator in numerators]
    ordered = sorted(exact)
    passing = [k for k in range(1, len(exact) + 1) if ordered[k - 1] <= Fraction(k * percent, 100 * len(exact))]
    bound = ordered[max(passing) - 1] if passing else Fraction(-1)
    selected = benjamini_hochberg([numerator / 20 for numerator in numerators], percent / 100)
    assert selected.tolist() == [value <= bound for value in exact]


def test_benjamini_hochberg_bounds_the_false_discovery_rate() -> None:
    """40 ID and 10 OOD images share one calibration set; the bound is `level` times the share of ID images."""
    proportions, found = [], []
    for draw in normal(6, 1500, 249):
        scores = np.concatenate([draw[199:239], draw[239:] + 4])
        selected = benjamini_hochberg(p_values(draw[:199], scores), 0.2)
        proportions.append(selected[:40].sum() / max(1, selected.sum()))
        found.append(selected[40:].mean())
    assert np.mean(proportions) <= 0.16 + 4 * np.std(proportions) / math.sqrt(1500)
    assert np.mean(found) > 0.8


# --- combinations


@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.floats(1e-12, 1), min_size=k, max_size=k)))
def test_combinations_equal_scipy(values: list[float]) -> None:
    column = [[value] for value in values]
    expected = stats.combine_pvalues(values, method="fisher").pvalue
    assert combine_p_values(column, "fisher")[0] == pytest.approx(expected, rel=1e-9, abs=1e-300)
    ordered = sorted(values)
    simes = min(len(values) * value / (k + 1) for k, value in enumerate(ordered))
    assert combine_p_values(column)[0] == pytest.approx(min(simes, 1), rel=1e-12)


def test_combinations_at_the_ends() -> None:
    ends = [[0.0, 1.0, 1e-300], [0.0, 1.0, 1e-300]]
    for method in ("simes", "fisher"):
        result = combine_p_values(ends, method)  # type: ignore[arg-type]
        assert result[0] == 0.0 and result[1] == 1.0 and 0 <= result[2] < 1e-200
    assert combine_p_values(torch.tensor([[0.25, 0.5]]), "fisher").tolist() == pytest.approx([0.25, 0.5])
    assert combine_p_values([[], []]).shape == (0,)


def simulate(method: str, correlation: float, seed: int) -> npt.NDArray[np.float64]:
    """Combined p-values of 4000 ID images judged by three methods with correlated scores."""
    random = np.random.default_rng(seed)

    def scores(images: int) -> npt.NDArray[np.float64]:
        shared = random.normal(size=images)
        own = random.normal(size=(3, images))
        return math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own

    calibration, held_out, new = scores(4000), scores(4000), scores(4000)
    given, judged = (
        [p_values(reference, values) for reference, values in zip(calibration, images, strict=True)]
        for images in (held_out, new)
    )
    return combine_p_values(judged, method, given if method == "rank" else None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "correlation"), [("fisher", 0.0), ("simes", 0.0), ("simes", 0.8), ("rank", 0.0), ("rank", 0.8)]
)
def test_combinations_are_valid_where_they_say_so(method: str, correlation: float) -> None:
    rejected = np.mean([np.mean(simulate(method, correlation, seed) <= 0.05) for seed in range(5)])
    assert rejected <= 0.057


def test_fisher_is_not_valid_for_dependent_methods() -> None:
    assert np.mean(simulate("fisher", 0.8, 0) <= 0.05) > 0.08


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_values": []}, "at least one method"),
        ({"p_values": [[0.1], [0.1, 0.2]]}, r"shape \(methods, images\)"),
        ({"p_values": [0.1, 0.2]}, "one dimension"),
        ({"p_values": [[1.5]]}, r"in \[0, 1\]"),
        ({"p_values": [[float("nan")]]}, "NaN"),
        ({"method": "mean"}, "`method` must be 'simes', 'fisher' or 'rank', but is 'mean'"),
        ({"method": "rank"}, "`id_p_values` is for"),
        ({"id_p_values": [[0.1]]}, "`id_p_values` is for"),
        ({"method": "rank", "id_p_values": [[0.1], [0.2]]}, r"`id_p_values` must have shape \(1, id_images\)"),
        ({"method": "rank", "id_p_values": [[]]}, "at least one image"),
    ],
)
def test_bad_p_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_p_values(**{"p_values": [[0.5, 0.1]]} | arguments)
    for bad in ([1.5], [float("nan")], [-0.1]):
        with pytest.raises(ValueError, match="p_values"):
            benjamini_hochberg(bad)
    with pytest.raises(ValueError, match="`level` must be"):
        benjamini_hochberg([0.1], 0)


def test_examples_print_what_they_show() -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


# Without images


def test_starting_threshold_is_the_median_over_stand_ins() -> None:
    texts = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    unit = texts / texts.norm(dim=1, keepdim=True)
    stand_ins = mcm(0.3 * unit @ unit.T)
    assert starting_threshold(mcm, texts, 0.3) == pytest.approx(stand_ins.median().item())
    # Half of the stand-ins lie above it at most, and the more the contrast is reduced, the fewer images do.
    thresholds = [starting_threshold(mcm, texts, contrast) for contrast in (0.1, 0.2, 0.4, 0.8)]
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.parametrize(
    ("texts", "contrast", "message"),
    [
        (torch.ones(1, 3), 0.2, "at least 2 classes, but has shape (1, 3)"),
        (torch.ones(3), 0.2, "at least 2 classes"),
        (torch.eye(3), 1.0, "`contrast`"),
        (torch.eye(3), 0.0, "`contrast`"),
    ],
)
def test_bad_input_of_the_starting_threshold(texts: torch.Tensor, contrast: float, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        starting_threshold(mcm, texts, contrast)


def test_a_guess_from_texts_promises_nothing() -> None:
    guess = Calibration(0.5, None, "text", 10, date="2026-01-01")
    assert guess.promise.startswith("No promise at all")
    assert "10 labels" in guess.promise
    assert guess.answers([0.4, 0.5, 0.6]) == ["known", "known", "unknown"]
    assert Calibration.from_dict(json.loads(json.dumps(guess.to_dict()))) == guess
    with pytest.raises(ValueError, match="promises nothing; leave out"):
        Calibration(0.5, 0.05, "text", 10)
    with pytest.raises(ValueError, match="`method` must be 'conformal' or 'quantile'"):
        calibrate(range(100), method="text")  # type: ignore[arg-type]
