# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP-OS: Sun et al., "CLIP-driven Outliers Synthesis for few-shot OOD detection", 2024,
https://arxiv.org/abs/2404.00323. No code of the authors is published; what the paper leaves open is an argument here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..local_features import NUM_SURGERY_LAYERS, LocalPath, image_and_local_features, patch_grid
from ..modeling import LearnedPrompts
from ..scores import mcm_with_unknown, unknown_probability
from .few_shot_config import FewShotArguments
from .few_shot_trainer import FewShotTrainer
from .outliers import blend_patch_context, id_relevant_features, surgery_discrepancy_mask, synthesize_outliers
from .prompt_losses import clip_os_loss, coop_loss


@dataclass
class CLIPOSArguments(FewShotArguments):
    r"""Arguments of [`CLIPOSTrainer`]: those of [`FewShotArguments`] and the following.

    Mechanisms, each of which can be switched off:
        blend (`bool`, *optional*, defaults to `True`): Whether patches are blended with those around them.
        beta (`float`, *optional*, defaults to `0.5`): Share of those around them, in [0, 1].
        mask (`bool`, *optional*, defaults to `True`):
            Whether the mean is over those patches alone that show the class, instead of all.
        mask_threshold (`str`, *optional*, defaults to `"mean"`):
            Above which difference of both similarity maps a patch shows the class: the `"mean"` of the image,
            `"otsu"`, or a number in [-1, 1].
        synthesize (`bool`, *optional*, defaults to `True`):
            Whether outliers are mixed of two classes; they are otherwise the patches that do not show the class.
        alpha (`float`, *optional*, defaults to `1.0`): Of the Beta distribution of the shares.
        num_outliers (`int`, *optional*): Outliers of a process and step. By default as many as images.
        unknown_weight (`float`, *optional*, defaults to `0.1`): Of outliers in the loss; 0 leaves them out.

    Features:
        patch_path (`str`, *optional*, defaults to `"value"`):
            Which local features the mean is over: `"value"`, `"surgery"` or `"clip"`, see
            [`~clipn_hf.encoders.local_image_features`].
        num_surgery_layers (`int`, *optional*, defaults to `6`):
            How many of the last blocks the path `"surgery"` goes around, at most all.
        classified_features (`str`, *optional*, defaults to `"global"`):
            What of images is to be their class: the embeddings of whole images, `"global"`, those of the part that
            shows the class, `"relevant"`, or `"both"`.

    Unknown prompt:
        unknown_label (`str`, *optional*, defaults to `"unknown"`): What stands in place of a label.
        num_unknown_tokens (`int`, *optional*, defaults to `4`):
            That many tokens of its own stand there, which begin as the words of `unknown_label` and are learned; 0 is
            for these words themselves.

    Raises:
        ValueError: A value outside of what is described above, or of [`FewShotArguments`].
    """

    # Parameters that control the outliers
    blend: bool = field(default=True, metadata={"help": "Blend patches with those around them."})
    beta: float = field(default=0.5, metadata={"help": "Share of the patches around a patch."})
    mask: bool = field(default=True, metadata={"help": "Use those patches alone that show the class."})
    mask_threshold: str = field(
        default="mean", metadata={"help": "Difference above which a patch shows the class: mean, otsu or a number."}
    )
    synthesize: bool = field(
        default=True,
        metadata={"help": "Mix outliers of two classes; else patches beside the class are outliers."},
    )
    alpha: float = field(default=1.0, metadata={"help": "Parameter of the Beta distribution of shares."})
    num_outliers: int | None = field(
        default=None, metadata={"help": "Outliers per process and step. Default: as many as images."}
    )
    unknown_weight: float = field(default=0.1, metadata={"help": "Weight of outliers in the loss."})

    # Parameters that say what features are
    patch_path: Literal["value", "surgery", "clip"] = field(
        default="value", metadata={"help": "Local features that are averaged: value, surgery or clip."}
    )
    num_surgery_layers: int = field(
        default=NUM_SURGERY_LAYERS, metadata={"help": "Last blocks that the path surgery goes around, at most all."}
    )
    classified_features: Literal["global", "relevant", "both"] = field(
        default="global", metadata={"help": "What of images is classified: global, relevant or both."}
    )

    # Parameters that say what the unknown prompt is
    unknown_label: str = field(default="unknown", metadata={"help": "Word in place of a label in the unknown prompt."})
    num_unknown_tokens: int = field(
        default=4, metadata={"help": "Tokens of its own in place of this word; 0 for the word itself."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"`beta` must lie in [0, 1], got {self.beta}.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"`alpha` must be positive and finite, such as 1.0, got {self.alpha}.")
        if not (math.isfinite(self.unknown_weight) and self.unknown_weight >= 0):
            raise ValueError(f"`unknown_weight` must be a finite number >= 0, got {self.unknown_weight}.")
        for name in ("num_outliers", "num_surgery_layers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_unknown_tokens < 0:
            raise ValueError(f"`num_unknown_tokens` must be at least 0, got {self.num_unknown_tokens}.")
        if self.patch_path not in get_args(LocalPath):
            raise ValueError(f"`patch_path` must be 'value', 'surgery' or 'clip', got {self.patch_path!r}.")
        if self.classified_features not in ("global", "relevant", "both"):
            raise ValueError(
                f"`classified_features` must be 'global', 'relevant' or 'both', got {self.classified_features!r}."
            )
        if not (self.mask or self.synthesize):
            raise ValueError(
                "`mask=False` and `synthesize=False` leave nothing to be an outlier; set one of them to True."
            )
        _read_threshold(self.mask_threshold)

    @property
    def threshold(self) -> Any:
        """`mask_threshold` as [`surgery_discrepancy_mask`] takes it."""
        return _read_threshold(self.mask_threshold)


def _read_threshold(given: str) -> Any:
    if given in ("mean", "otsu"):
        return given
    try:
        threshold = float(given)
    except ValueError:
        threshold = math.nan
    if not -1 <= threshold <= 1:
        raise ValueError(f"`mask_threshold` must be 'mean', 'otsu' or a number in [-1, 1], got {given!r}.")
    return threshold


class CLIPOSTrainer(FewShotTrainer):
    r"""Learn a context with which class prompts and an "unknown" prompt tell images of the classes from outliers.

    Of each image, the patches that show its class are found and averaged, by what the encoder as it came says of them
    under the templates of the model. In every step, outliers are mixed of these features of two classes each, of all
    training images, so that it does not matter which classes a batch has. The loss is [`clip_os_loss`]. Arguments,
    errors and checkpoints are those of [`FewShotTrainer`]; evaluations also report the method `clip_os`,
    and, as `unknown_probability`, the probability of the unknown class alone (`combination="none"`). With
    `num_cached_views=0`, outliers are mixed of images as they are.

    Example:

    ```python
    >>> from clipn_hf import DualEncoder, OODDetector
    >>> from clipn_hf.training import CLIPOSArguments, CLIPOSTrainer, LabelledImages, load_labelled_images

    >>> encoder = DualEncoder.from_pretrained("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> rows = load_labelled_images("photos")  # doctest: +SKIP
    >>> trainer = CLIPOSTrainer(  # doctest: +SKIP
    ...     encoder.model,
    ...     CLIPOSArguments(output_dir="clip-os"),
    ...     processing_class=encoder.processor,
    ...     labels=rows.features["label"].names,
    ...     train_dataset=LabelledImages(rows),
    ... )
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.save_model()  # doctest: +SKIP
    >>> detector = OODDetector("clip-os", trainer.labels, "clip_os")  # doctest: +SKIP

    ```"""

    args: CLIPOSArguments
    method: ClassVar[str] = "clip_os"
    arguments_type: ClassVar[type[FewShotArguments]] = CLIPOSArguments
    reads_patches: ClassVar[bool] = True

    def _needs(self, args: Any) -> tuple[str, ...]:
        needed = {
            "embeddings": args.classified_features != "relevant",
            "relevant": args.classified_features != "global" or (args.synthesize and args.unknown_weight > 0),
            "background": not args.synthesize and args.unknown_weight > 0,
        }
        return tuple(name for name, is_needed in needed.items() if is_needed)

    def _prepare_encoder(self, args: Any) -> None:
        self._label_texts, _ = self.dual_encoder.class_embeddings(self.labels, use_no_encoder=False, use_memory=False)
        self._bank: tuple[Tensor, Tensor] | None = None
        self._draw = (-1, 0)

    def _add_prompts(self, model: Any, processor: Any, args: Any, **_: Any) -> LearnedPrompts:
        return super()._add_prompts(
            model,
            processor,
            args,
            unknown=True,
            unknown_label=args.unknown_label,
            num_unknown_tokens=args.num_unknown_tokens,
        )

    def encode_images(self, inputs: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        assert labels is not None
        args, model, pixel_values = self.args, self.dual_encoder.model, inputs["pixel_values"]
        grid = patch_grid(model, pixel_values)
        paths: set[LocalPath] = {args.patch_path} | ({"surgery", "clip"} if args.mask else set())
        blocks = len(model.vision_model.encoder.layers)
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            embeddings, local = image_and_local_features(
                model, pixel_values, sorted(paths), min(args.num_surgery_layers, blocks)
            )
            if args.blend:
                local = {path: blend_patch_context(patches, args.beta, grid) for path, patches in local.items()}
            features = {"embeddings": normalize(embeddings.float(), dim=-1)}
            mask = None
            if args.mask:
                texts = self._label_texts.to(pixel_values.device)[labels]  # (batch, dim)
                maps = {path: _compare(local[path], texts) for path in ("surgery", "clip")}
                mask = surgery_discrepancy_mask(maps["surgery"], maps["clip"], args.threshold)
            patches = local[args.patch_path].float()
            features["relevant"] = id_relevant_features(patches, mask)
            if mask is not None and not args.synthesize:
                rest = ~mask
                has_rest = rest.any(dim=1)
                background = torch.full_like(features["relevant"], math.nan)
                background[has_rest] = id_relevant_features(patches[has_rest], rest[has_rest])
                features["background"] = background
        return features

    def training_loss(self, model: nn.Module, features: dict[str, Tensor], labels: Tensor) -> Tensor:
        classified = {
            "global": ("embeddings",),
            "relevant": ("relevant",),
            "both": ("embeddings", "relevant"),
        }[self.args.classified_features]
        embeddings = torch.cat([features[name] for name in classified])
        labels = labels.repeat(len(classified))
        outliers = self._outliers(features, len(labels) // len(classified))
        if outliers is None:
            return coop_loss(model(embeddings=embeddings)["logits"], labels)
        outputs = model(embeddings=embeddings, outliers=outliers)
        return clip_os_loss(outputs["logits"], labels, outputs["outlier_logits"], self.args.unknown_weight)

    def ood_scores(self, logits: Tensor) -> dict[str, Tensor]:
        known, unknown = logits[:, : len(self.labels)], logits[:, len(self.labels)]
        scale = self.model.logit_scale
        return {
            **super().ood_scores(logits),
            "clip_os": mcm_with_unknown(known / scale, unknown / scale),
            "unknown_probability": unknown_probability(known, unknown),
        }

    def _outliers(self, features: Mapping[str, Tensor], batch_size: int) -> Tensor | None:
        """Outliers `(outliers, dim)` of this process for one batch; None without any."""
        args = self.args
        if args.unknown_weight == 0:
            return None
        if not args.synthesize:
            background = features["background"][features["background"].isfinite().all(dim=1)]
            return background if len(background) else None
        if self._bank is None:
            known = self._training_features()
            relevant, classes = known.features["relevant"], known.labels
            assert classes is not None
            views = relevant.shape[1]
            self._bank = relevant.flatten(0, 1).to(args.device), classes.repeat_interleave(views).to(args.device)
        count = args.num_outliers or batch_size
        # Drawn for all processes by each of them, as one process would draw them.
        drawn = synthesize_outliers(
            *self._bank, alpha=args.alpha, num_outliers=count * args.world_size, generator=self._next_generator()
        )
        return drawn[args.process_index :: args.world_size]

    def _next_generator(self) -> torch.Generator:
        """A generator for this batch alone, the same in an uninterrupted and in a resumed run."""
        step, batch = self._draw
        self._draw = step, batch = self.state.global_step, batch + 1 if step == self.state.global_step else 0
        seed = np.random.SeedSequence([self.args.seed, step, batch]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]) >> 1)


def _compare(patches: Tensor, texts: Tensor) -> Tensor:
    """Cosines `(batch, patches)` of patches with the text of their image."""
    return torch.einsum("bpd,bd->bp", normalize(patches.float(), dim=-1), texts)


__all__ = ["CLIPOSArguments", "CLIPOSTrainer"]
