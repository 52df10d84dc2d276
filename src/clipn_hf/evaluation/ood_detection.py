# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of OOD detection as a module of the evaluate library.

Load it by the path of this file; nothing is downloaded:

```python
>>> import evaluate
>>> from clipn_hf.evaluation import ood_detection
>>> metric = evaluate.load(ood_detection.__file__)
>>> metric.compute(predictions=[0.1, 0.6, 0.4, 0.9], references=[0, 0, 1, 1])["auroc"]
0.75

```
"""

from typing import Any

import datasets
import evaluate
import numpy as np

# Absolute, because evaluate runs a copy of this file outside of the package.
from clipn_hf.evaluation.metrics import (
    aupr,
    aurc,
    auroc,
    ccr_at_fpr,
    detection_accuracy,
    fpr_at_tpr,
    id_accuracy,
    oscr,
)

_DESCRIPTION = """\
Metrics of out-of-distribution (OOD) detection from scores that are higher for more OOD: AUROC, AUPR-in, AUPR-out, the
false-positive rate at a true-positive rate, detection accuracy; with class labels also ID accuracy, AURC, OSCR and the
correct classification rate at a false-positive rate.
"""

_INPUTS = """\
Args:
    predictions (`list` of `float`): OOD-ness of each image; higher = more OOD.
    references (`list` of `int`): 1 for each OOD image, 0 for each ID image.
    tpr (`float`, *optional*, defaults to 0.95): Share of the positives to keep, for `"fpr_at_tpr"`.
    positive (`str`, *optional*, defaults to `"id"`): Which images count as positive there: `"id"` or `"ood"`.
    rule (`str`, *optional*, defaults to `"exact"`): Which threshold there: `"exact"`, `"nearest"` or `"linear"`.
    aupr_rule (`str`, *optional*, defaults to `"average_precision"`): Or `"trapezoid"`.
    predicted_labels (`list`, *optional*): Predicted class label of each image, in the order of `predictions`.
    class_labels (`list`, *optional*): The right ones; those of OOD images are not looked at.
    fpr (`float`, *optional*, defaults to 0.01): Share of OOD images that may be accepted, for `"ccr_at_fpr"`.

Returns:
    `dict`: `"auroc"`, `"aupr_in"`, `"aupr_out"`, `"fpr_at_tpr"`, `"detection_accuracy"`; with both kinds of labels
    also `"id_accuracy"`, `"aurc"` (over ID images), `"oscr"`, `"ccr_at_fpr"`. The conventions in use stand beside
    them: `"tpr"`, `"positive"`, `"rule"`, `"aupr_rule"`, and with labels `"fpr"`.

Raises:
    ValueError: A score is NaN, a reference neither 0 nor 1, ID or OOD images are missing, labels do not match, or a
        convention is not known.
"""

_CITATION = """\
@software{clipn_hf, title = {clipn-hf: out-of-distribution detection for CLIP}, author = {{The clipn-hf authors}}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class OODDetection(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # float64, because scores near 0 or 1 may differ in digits that float32 does not have.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        tpr: float = 0.95,
        positive: Any = "id",
        rule: Any = "exact",
        aupr_rule: Any = "average_precision",
        predicted_labels: Any = None,
        class_labels: Any = None,
        fpr: float = 0.01,
    ) -> dict[str, Any]:
        scores, truth = np.asarray(predictions), np.asarray(references)
        strange = sorted(set(truth.tolist()) - {0, 1})
        if strange:
            raise ValueError(f"`references` must be 1 for OOD and 0 for ID images, but holds {strange[0]}.")
        is_ood = truth == 1
        for value, kind in ((0, "ID"), (1, "OOD")):
            if value not in truth:
                raise ValueError(f"`references` has no {value}; give at least one {kind} image.")
        id_scores, ood_scores = scores[~is_ood], scores[is_ood]
        results: dict[str, Any] = {
            "auroc": auroc(id_scores, ood_scores),
            "aupr_in": aupr(id_scores, ood_scores, positive="id", rule=aupr_rule),
            "aupr_out": aupr(id_scores, ood_scores, positive="ood", rule=aupr_rule),
            "fpr_at_tpr": fpr_at_tpr(id_scores, ood_scores, tpr, positive, rule),
            "detection_accuracy": detection_accuracy(id_scores, ood_scores),
        }
        conventions = {"tpr": tpr, "positive": positive, "rule": rule, "aupr_rule": aupr_rule}
        if (predicted_labels is None) != (class_labels is None):
            raise ValueError("`predicted_labels` and `class_labels` belong together; give both or none.")
        if predicted_labels is not None:
            predicted, right = np.asarray(predicted_labels), np.asarray(class_labels)
            for name, labels in (("predicted_labels", predicted), ("class_labels", right)):
                if labels.shape != scores.shape:
                    raise ValueError(
                        f"`{name}` must have one label for each of {len(scores)} predictions, but has shape "
                        f"{labels.shape}."
                    )
            predicted, right = predicted[~is_ood], right[~is_ood]
            results |= {
                "id_accuracy": id_accuracy(predicted, right),
                "aurc": aurc(id_scores, predicted, right),
                "oscr": oscr(id_scores, ood_scores, predicted, right),
                "ccr_at_fpr": ccr_at_fpr(id_scores, ood_scores, predicted, right, fpr),
            }
            conventions["fpr"] = fpr
        return results | conventions
