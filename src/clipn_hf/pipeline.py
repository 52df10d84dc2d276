# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`OODPipeline`, the transformers face of [`OODDetector`]: `pipeline("ood-detection", model=…)`."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPProcessor, Pipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .detector import PUBLISHING_OPTIONS, TOP_K, TOP_NEGATIVES, OODDetector, OODResult
from .detector_checks import check_count, check_given_count, default_method
from .detector_explanations import ExplainedResult, explained
from .detector_files import read_detector
from .encoders import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE, AutoDualEncoder, DualEncoder
from .images import NumberedImages, image_of, number_images
from .methods import METHODS, get_method, unknown_argument
from .prompts import validate_labels
from .similarity_maps import DEFAULT_PATH, MAP_PATHS, MapPath

TASK = "ood-detection"
CALL_OPTIONS = (
    "candidate_labels",
    "method",
    "threshold",
    "top_k",
    "templates",
    "no_templates",
    "negatives",
    "top_negatives",
    "explain",
    "batch_size",
    "num_workers",
)


class OODPipeline(Pipeline):
    """Zero-shot OOD detection: which images show none of the candidate labels?

    Computes in float32 on a CPU whatever dtype is stored or asked for; on an accelerator in float32 unless `dtype`
    says otherwise. A model object is used as it is, not copied: it is moved to the device, put in evaluation mode and,
    on a CPU, converted to float32. Scores of one image differ by less than 1e-4 of their size between batch sizes and
    orders.

    The folder or repository of a detector that [`OODDetector.save_pretrained`] wrote brings its labels, method,
    threshold and all that it has learnt; what a call names differently holds for that call.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A [`CLIPNModel`], [`~transformers.CLIPModel`], [`~transformers.SiglipModel`] or any other model that
            [`DualEncoder`] takes. With a model object pass its `processor`, too.
        candidate_labels, method, threshold, top_k, templates, no_templates, negatives, top_negatives, explain,
        batch_size, num_workers, settings:
            Defaults for every call.

    Raises:
        TypeError: An argument that neither the pipeline nor any method has, or a model object without processor.

    Example:

    ```python
    >>> from clipn_hf import pipeline
    >>> detect = pipeline("ood-detection", model="org/clipn-vitb16")  # doctest: +SKIP
    >>> result = detect("car.jpg", candidate_labels=["cat", "dog"])  # doctest: +SKIP

    ```
    """

    # In transformers these four are None, by which type checkers take them to be nothing else.
    _load_tokenizer: bool | None = False  # type: ignore[assignment]
    _load_image_processor: bool | None = False  # type: ignore[assignment]
    _load_feature_extractor: bool | None = False  # type: ignore[assignment]
    _load_video_processor: bool | None = False  # type: ignore[assignment]

    def __init__(self, *args: Any, dtype: str | torch.dtype | None = None, **kwargs: Any) -> None:
        # `pipeline` hands this argument for the Hub on to the class.
        kwargs.pop("local_files_only", None)
        super().__init__(*args, **kwargs)
        self._defaults, self._postprocess_params = self._postprocess_params, {}
        known = list(dict.fromkeys([*CALL_OPTIONS, *(name for row in METHODS.values() for name in row.settings)]))
        for name in self._defaults:
            if name not in known:
                raise unknown_argument(type(self).__name__, name, known)
        if self.processor is None and self.tokenizer is not None and self.image_processor is not None:
            self.processor = CLIPProcessor(self.image_processor, self.tokenizer)
        folder = getattr(self.model, "detector_folder", None)
        saved = None if folder is None else read_detector(folder)
        if dtype is None and saved is not None:
            dtype = saved["model"]["dtype"]
        self.encoder = DualEncoder(self.model, self.processor, dtype=dtype)
        self.detector = None if folder is None else OODDetector.from_pretrained(folder, encoder=self.encoder)

    # This method and the three steps below take what this task needs; in transformers they take anything.
    def __call__(  # type: ignore[override]
        self, images: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any
    ) -> OODResult | list[OODResult] | Iterator[OODResult]:
        """Judge images.

        Args:
            images:
                One image: a path, an http(s) address, bytes, a binary file, a PIL image, a uint8 array. Or many of
                them: a list, tuple or column of a dataset; an iterator or generator; a `torch.utils.data.Dataset`,
                such as `KeyDataset`; a `datasets.Dataset` or `datasets.IterableDataset`, whose only column of type
                `Image`, or else the one called `"image"`, is read. In place of an image, a dictionary with one under
                `"image"` will do.
            candidate_labels (`Sequence[str]`): The known classes. They are encoded once, and kept for later calls. May
                be left out for a detector that was saved, and for learned prompts, whose labels are the default.
            method (`str`, *optional*):
                A key of `clipn_hf.methods.METHODS`; by default that of the detector, else as in [`OODDetector`]:
                `"atd"`, or that which learned prompts were trained for.
            threshold (`float`, *optional*):
                The score above which an image is OOD, strictly. By default that of the detector, else the
                threshold-free rule of the method decides, where it has one.
            top_k (`int`, *optional*, defaults to 5): How many labels to list in `labels` at most; None lists all.
            templates, no_templates (`Sequence[str]`, *optional*): As in [`OODDetector`].
            negatives (*optional*):
                Negative labels, as in [`OODDetector`]. They are mined or encoded once, and kept for later calls. By
                default those of the detector, else those that the method needs.
            top_negatives (`int`, *optional*, defaults to 3):
                How many negative labels to list in `negatives` at most, if there are any; 0 for none.
            explain (`bool` or `str`, *optional*, defaults to `False`):
                Whether to add `maps` and `overlay`, an array and a picture of which patches spoke for the labels and
                negative labels that the result lists, as [`~clipn_hf.detector_explanations.ExplainedResult`] describes
                it. True is for the path `"surgery"`; the name of another is one of
                [`~clipn_hf.similarity_maps.MAP_PATHS`].
            batch_size (`int`, *optional*, defaults to 1): Images per pass through the model.
            num_workers (`int`, *optional*, defaults to 0): Processes that read images ahead.
            kwargs: Settings of the method, such as `temperature`.

        Returns:
            [`OODResult`] for one image, a `list` of them for a list, tuple or other sequence, and for iterators and
            datasets an iterator of them that reads the images as it goes. With `explain` they are
            [`~clipn_hf.detector_explanations.ExplainedResult`].

        Raises:
            ImageError: An image cannot be read; the message says which.
            TypeError, ValueError: No labels, and whatever [`OODDetector`] refuses; an explanation of a model whose
                image encoder does not cut images into patches as that of CLIP does.
        """
        loading = {name: kwargs.pop(name) for name in ("batch_size", "num_workers") if name in kwargs}
        check_count("batch_size", loading.get("batch_size"))
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        options = {**self._defaults, **kwargs}
        # As elsewhere in transformers, None stands for the default; for `top_k` it means all.
        options = {name: value for name, value in options.items() if value is not None or name == "top_k"}
        settings = {name: value for name, value in options.items() if name not in CALL_OPTIONS}
        learned = self.encoder.learned_prompts
        method = default_method(learned) if self.detector is None else self.detector.method.name
        get_method(options.get("method", method)).resolve_settings(settings, CALL_OPTIONS)
        labels, top_k = options.pop("candidate_labels", None), options.pop("top_k", TOP_K)
        if labels is None and self.detector is None and learned is not None:
            labels = learned.labels
        top_negatives = options.pop("top_negatives", TOP_NEGATIVES)
        path = _explaining_path(options.pop("explain", False))
        check_count("top_k", top_k)
        check_given_count("top_negatives", top_negatives, minimum=0)
        if labels is not None:
            options["labels"] = validate_labels(labels, "candidate_labels")
        if self.detector is not None:
            detector = self.detector.with_changes(**options)
        elif labels is None:
            raise ValueError('`candidate_labels` is missing; name the known classes, such as ["cat", "dog"].')
        else:
            detector = OODDetector(self.encoder, **options)
        detector.check_fitted()
        detector.explain_missing_verdict()
        numbered = number_images(images)
        if numbered is None:
            numbered = images
        elif isinstance(numbered, Iterator):
            # transformers streams generators, and takes other iterators for one image.
            numbered = (item for item in numbered)
        results = super().__call__(
            numbered, detector=detector, top_k=top_k, top_negatives=top_negatives, path=path, **loading
        )
        # Datasets and iterators may be long: their results come one by one.
        in_memory = isinstance(images, Sequence | Mapping) and isinstance(numbered, NumberedImages)
        return list(results) if in_memory else results

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        # Images may be changed before they are embedded, in a way that depends on the detector.
        of_forward = {name: value for name, value in options.items() if name in ("detector", "path")}
        return {}, of_forward, options

    def preprocess(self, item: Any) -> dict[str, Tensor]:  # type: ignore[override]
        position, image = item if isinstance(item, tuple) else (None, image_of(item))
        return self.encoder.prepare_images([image], start=position)

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Tensor], detector: OODDetector, path: MapPath | None
    ) -> dict[str, Tensor]:
        if path is None:
            return {"image_embeddings": detector.embed_prepared(model_inputs)}
        embeddings, patches = detector.embed_to_explain(model_inputs, path)
        return {
            "image_embeddings": embeddings,
            "patches": patches,
            "pixel_values": model_inputs["pixel_values"],
        }

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Tensor],
        detector: OODDetector,
        top_k: int | None,
        top_negatives: int,
        path: MapPath | None,
    ) -> OODResult | ExplainedResult:
        embeddings = outputs["image_embeddings"]
        results = detector.results(embeddings, top_k, top_negatives, from_prepared=True)
        if path is None:
            return results[0]
        explanations = detector.explain_results(results, embeddings, outputs["pixel_values"], outputs["patches"], path)
        return explained(explanations[0])

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save model and processor, from which `pipeline("ood-detection", model=save_directory)` makes this again.

        Of a detector that was saved, the whole detector is saved, as [`OODDetector.save_pretrained`] does it.

        No code is saved: transformers would write the pipeline's own, which then could not be loaded without
        `trust_remote_code`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to publish model and processor, too, in one commit, as `push_to_hub()` does.
            kwargs:
                Arguments of `PreTrainedModel.save_pretrained`, such as `max_shard_size`, which a detector does not
                take; for publishing, those of `push_to_hub()`, such as `private`, and `repo_id`, by default the name
                of the folder.
        """
        publishing = {name: kwargs.pop(name) for name in (*PUBLISHING_OPTIONS, "tags") if name in kwargs}
        if self.detector is None:
            self.model.save_pretrained(save_directory, **kwargs)
            self.encoder.processor.save_pretrained(save_directory)
        else:
            self.detector.save_pretrained(save_directory)
        if push_to_hub:
            if "max_shard_size" in kwargs:
                publishing["max_shard_size"] = kwargs["max_shard_size"]
            self.push_to_hub(publishing.pop("repo_id", Path(save_directory).resolve().name), **publishing)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish model and processor, or the whole detector with its card, in one commit.

        Args:
            repo_id (`str`): The repository; made if it does not exist.
            kwargs: `private`, `token`, `revision`, `commit_message`, …, as for models.

        Returns:
            `str`: The address of the commit.
        """
        if self.detector is None:
            return str(super().push_to_hub(repo_id, **kwargs))
        return self.detector.push_to_hub(repo_id, **kwargs)


def _explaining_path(explain: object) -> MapPath | None:
    """Read the argument `explain`: the path of the maps, or None for no maps."""
    if isinstance(explain, bool):
        return DEFAULT_PATH if explain else None
    for path in MAP_PATHS:
        if explain == path:
            return path
    raise ValueError(
        f"`explain` must be True, False or the path of the maps, one of {', '.join(map(repr, MAP_PATHS))}, got "
        f"{explain!r}."
    )


def register_pipeline() -> None:
    """Make `transformers.pipeline` know the task "ood-detection", with the embedded checkpoint as its default."""
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=OODPipeline,
        pt_model=AutoDualEncoder,
        default={"model": (EMBEDDED_CHECKPOINT, None)},
        type="multimodal",
    )
    logging.getLogger("transformers.pipelines").addFilter(_explain_default)


def _explain_default(record: logging.LogRecord) -> bool:
    """Put what the embedded checkpoint is in place of transformers' remark that no model was supplied."""
    if record.getMessage().startswith(f"No model was supplied, defaulted to {EMBEDDED_CHECKPOINT} and revision "):
        record.msg, record.args = EMBEDDED_NOTICE, ()
    return True


# `pipeline` is exported from here, so that in the package the function wins over this module of the same name.
__all__ = ["OODPipeline", "pipeline", "register_pipeline"]
