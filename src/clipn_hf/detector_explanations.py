# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector looked at: the patches that spoke for the labels it lists, for "unknown" or "no", and for negative
labels.
"""

from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from .detector_checks import check_image_embeddings
from .detector_results import OODResult
from .detector_state import EmbeddedTexts
from .encoders import DualEncoder
from .heat_maps import draw_explanation
from .similarity_maps import Evidence, Explanation, Kind, MapPath, compare_patches, seen_pictures


class ExplainedResult(OODResult):
    """What a detector says about one image, with what it looked at.

    Keys, besides those of [`OODResult`]:
        maps (`dict`):
            `{"labels": {label: map, …}, "unknown": {"unknown": map}, "no": {label: map, …}, "negatives": {negative
            label: map, …}}` for the labels and negative labels that the result lists, in their order; `"unknown"` and
            `"no"` are empty where the method judges by neither. Each map is a `torch.Tensor` of shape
            `(rows, columns)`, float32, one value per patch of the image as the model saw it, higher = speaks more for
            the text.
        overlay (`PIL.Image.Image`): The image and its heat maps, as [`~clipn_hf.heat_maps.draw_explanation`] draws it.
    """

    maps: dict[str, dict[str, Tensor]]
    overlay: Image.Image


def explained(explanation: Explanation) -> ExplainedResult:
    """Put maps and picture to what a detector says.

    Args:
        explanation ([`~clipn_hf.similarity_maps.Explanation`]): Of one image.

    Returns:
        [`ExplainedResult`]
    """
    added = {"maps": explanation.maps(), "overlay": draw_explanation(explanation)}
    return cast(ExplainedResult, {**explanation.result, **added})


def explain_results(
    encoder: DualEncoder,
    labels: Sequence[str],
    texts: EmbeddedTexts,
    results: Sequence[OODResult],
    image_embeddings: Tensor,
    pixel_values: Tensor,
    patches: Tensor,
    path: MapPath,
    relative: bool = True,
    no: bool | None = None,
) -> list[Explanation]:
    """Find which patches spoke for what results list.

    Args:
        encoder ([`DualEncoder`]): That of the detector.
        labels (`Sequence[str]`): Those of the detector.
        texts ([`~clipn_hf.detector_state.EmbeddedTexts`]): Those of the detector.
        results (`Sequence[OODResult]`): One per image.
        image_embeddings (`torch.Tensor` of shape `(images, dim)` or `(images, dim + 1)`):
            As `embed_prepared` gives them.
        pixel_values (`torch.Tensor` of shape `(images, channels, height, width)`):
            As [`DualEncoder.prepare_images`] gives them.
        patches (`torch.Tensor` of shape `(images, paths, rows, columns, dim)`):
            As [`~clipn_hf.similarity_maps.embed_patches`] gives them for `path`.
        path (`str`): One of [`~clipn_hf.similarity_maps.MAP_PATHS`].
        relative (`bool`, *optional*, defaults to `True`):
            As for [`~clipn_hf.similarity_maps.Explanation`]; with a single label nothing is compared, and on the path
            `"discrepancy"`, which normalises each map by itself, comparing has no meaning.
        no (`bool`, *optional*): Whether to explain "no"; by default where the method judges by it.

    Returns:
        `list` of [`~clipn_hf.similarity_maps.Explanation`], one per image.

    Raises:
        TypeError: `no` for a model without a "no" text encoder.
        ValueError: As [`DualEncoder.pixel_range`].
    """
    if no and not encoder.has_no_encoder:
        raise TypeError(
            f'`no` needs a CLIPN, and {type(encoder.model).__name__} has no "no" text encoder; leave it out, or use '
            "another model."
        )
    no_text = None if no is False else texts.no_text
    if no and no_text is None:
        # The method does without them.
        no_text = encoder.class_embeddings(labels, texts.templates, texts.no_templates or None)[1]
    no_text = None if no_text is None else no_text.detach().cpu()
    dim = texts.text.shape[1]
    embeddings = normalize(check_image_embeddings(image_embeddings[:, :dim], dim), dim=1)
    # Compared with itself, a label leaves nothing.
    relative = relative and len(labels) > 1 and path != "discrepancy"
    nothing = torch.zeros_like(texts.text[0])
    common = texts.text.mean(dim=0) if relative else nothing
    pictures = seen_pictures(encoder, pixel_values)
    explanations = []
    for row, (result, picture) in enumerate(zip(results, pictures, strict=True)):
        positions = [labels.index(entry["label"]) for entry in result["labels"]]
        text = texts.text[positions]
        listed: list[tuple[Kind, str, float, Tensor, Tensor]] = [
            ("label", entry["label"], entry["score"], own, common)
            for entry, own in zip(result["labels"], text, strict=True)
        ]
        if texts.unknown is not None:
            logits = encoder.logit_scale * (torch.cat([texts.text, texts.unknown[None]]) @ embeddings[row])
            listed.append(("unknown", "unknown", float(logits.softmax(dim=0)[-1]), texts.unknown, common))
        if no_text is not None:
            cosines = no_text[positions] @ embeddings[row], text @ embeddings[row]
            shares = torch.sigmoid(encoder.logit_scale * (cosines[0] - cosines[1])).tolist()
            listed += [
                ("no", entry["label"], share, no, own if relative else nothing)
                for entry, share, no, own in zip(result["labels"], shares, no_text[positions], text, strict=True)
            ]
        if texts.negatives is not None:
            bank = texts.negatives
            listed += [
                (
                    "negative",
                    entry["label"],
                    entry["score"],
                    bank.embeddings[bank.labels.index(entry["label"])],
                    common,
                )
                for entry in result["negatives"]
            ]
        compared = torch.stack([own - other for *_, own, other in listed])
        maps = compare_patches(patches[row : row + 1], compared)[0]
        evidence = tuple(
            Evidence(kind, name, probability, float(own @ embeddings[row]), one, relative or path == "discrepancy")
            for (kind, name, probability, own, _), one in zip(listed, maps, strict=True)
        )
        explanations.append(Explanation(picture, result, evidence, path, relative))
    return explanations


__all__ = ["ExplainedResult", "explain_results", "explained"]
