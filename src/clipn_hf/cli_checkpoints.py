# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `info` and `convert` of the command `clipn-hf`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cli_options import counted, first_ones, loading, prepare_loading, thresholds_of_labels
from .methods import METHODS, NEEDS, Need
from .methods.neglabel import effective_settings
from .methods.plp import describe_balance
from .prompts import DEFAULT_TEMPLATES
from .records import describe_threshold, printable

if TYPE_CHECKING:
    from .detector import OODDetector
    from .encoders import DualEncoder


class Activation(StrEnum):
    """The activation functions of original checkpoints."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"


def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Hub id or folder of a model or detector.", show_default="the embedded checkpoint"),
    ] = None,
) -> None:
    """Show what a checkpoint is and which methods it serves, and of a detector how it decides."""
    from transformers import AutoConfig, CLIPConfig

    from .detector import OODDetector
    from .detector_checks import unserved
    from .detector_files import read_detector
    from .encoders import EMBEDDED_CHECKPOINT, DualEncoder
    from .modeling.description import describe_config

    source = EMBEDDED_CHECKPOINT if model is None else model
    detector = None
    with loading(source):
        if read_detector(source) is None:
            encoder = DualEncoder.from_pretrained(source, device="cpu")
        else:
            detector = OODDetector.from_pretrained(source, device="cpu")
            encoder = detector.image_encoder
    config = encoder.model.config
    rows = {} if detector is None else {"detector": source, **_describe_detector(detector)}
    checkpoint = (detector and encoder.source) or source
    if checkpoint == EMBEDDED_CHECKPOINT:
        checkpoint = f"{Path(checkpoint).name}, embedded in clipn-hf"
    rows |= {
        "checkpoint": checkpoint,
        "model": f"{type(encoder.model).__name__}, type {config.model_type}",
        **(describe_config(config) if isinstance(config, CLIPConfig) else _describe_towers(config)),
    }
    rows["parameters"] = f"{sum(weight.numel() for weight in encoder.model.parameters()):,}"
    # The model in memory is float32 whatever its file holds.
    stored_dtype = AutoConfig.from_pretrained(encoder.model.name_or_path).dtype
    if stored_dtype is not None:
        rows["stored as"] = str(stored_dtype).removeprefix("torch.")
    rows["logit scale"] = f"{encoder.logit_scale:.4g}"
    if encoder.is_sigmoid:
        rows["logit bias"] = f"{encoder.logit_bias:.4g}, trained with a sigmoid loss"
    if detector is None:
        rows |= _describe_templates(encoder, encoder)
    served = [name for name, method in METHODS.items() if unserved(method, method.settings, encoder) is None]
    rows["methods"] = ", ".join(served)
    lacking: dict[str, list[str]] = {}
    # All else that methods need, any model has or images and texts give.
    there: dict[Need, bool] = {
        "no": encoder.has_no_encoder,
        "sigmoid": encoder.is_sigmoid,
        "patches": encoder.has_local_features,
        "unknown": encoder.has_unknown_prompt,
    }
    for name, method in METHODS.items():
        for need in there:
            if need in method.needs and not there[need]:
                lacking.setdefault(NEEDS[need], []).append(name)
    if lacking:
        rows["not served"] = "\n".join(f"{', '.join(names)}: for {need}" for need, names in lacking.items())

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    Console(highlight=False).print(table)


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A .pt or .safetensors file of the CLIPN authors or of OpenCLIP.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    processor: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hub id or folder of the tokenizer and image processor.",
            show_default="none, the model only is written",
        ),
    ] = None,
    activation: Annotated[
        Activation, typer.Option(help="Exact GELU, or the quick one for weights of OpenAI.")
    ] = Activation.GELU,
    vision_heads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention heads of the image encoder.", show_default="its width / 64"),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention heads of the text encoder.", show_default="its width / 64"),
    ] = None,
    eos_token_id: Annotated[
        int | None,
        typer.Option(
            metavar="ID",
            help="The token that ends texts.",
            show_default="the processor's, or the last of the vocabulary",
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            help="Text around a label, written to a CLIPN as its default; repeat the option for several.",
            show_default=f'"{DEFAULT_TEMPLATES[0]}" and {len(DEFAULT_TEMPLATES) - 1} more',
        ),
    ] = None,
    no_templates: Annotated[
        list[str] | None,
        typer.Option(
            "--no-template",
            metavar="TEXT",
            help='The same for its "no" text encoder.',
            show_default="with learnable prompts --template, else their negations",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Turn an original checkpoint into a folder that from_pretrained loads."""
    from .modeling.conversion import convert_checkpoint, format_summary

    prepare_loading(processor)
    summary = convert_checkpoint(
        source,
        output,
        processor=processor,
        activation=activation,
        vision_heads=vision_heads,
        text_heads=text_heads,
        eos_token_id=eos_token_id,
        templates=templates,
        no_templates=no_templates,
        overwrite=overwrite,
    )
    print(format_summary(summary))


def _describe_towers(config: Any) -> dict[str, str]:
    """Describe what is known of the sizes of any dual encoder: configurations differ in what they have."""
    words = {
        "num_hidden_layers": "{:,} layers",
        "hidden_size": "width {:,}",
        "image_size": "{0} × {0} pixels",
        "patch_size": "patches of {}",
        "vocab_size": "{:,} tokens",
    }
    parts = {}
    for name, key in (("image encoder", "vision_config"), ("text encoder", "text_config")):
        tower = getattr(config, key, None)
        sizes = {size: getattr(tower, size, None) for size in words}
        known = [words[size].format(value) for size, value in sizes.items() if isinstance(value, int)]
        if known:
            parts[name] = ", ".join(known)
    return parts


def _describe_templates(texts: "DualEncoder | OODDetector", encoder: "DualEncoder") -> dict[str, str]:
    rows = {"templates": "\n".join(texts.templates)}
    if encoder.has_no_encoder and texts.no_templates != texts.templates:
        rows['"no" templates'] = "\n".join(texts.no_templates)
    return rows


def _describe_detector(detector: "OODDetector") -> dict[str, str]:
    from .detector_card import describe_finetuning, describe_held_out

    rows = {
        "labels": f"{len(detector.labels):,}: {first_ones(detector.labels)}",
        "method": f"{detector.method.name}, {detector.method.title}",
    }
    bank = detector.negatives
    if detector.known_settings:
        settings = effective_settings(detector.known_settings, None if bank is None else len(bank))
        rows["settings"] = ", ".join(f"{name}={value}" for name, value in settings.items())
    if bank is not None:
        how = "as given" if bank.mined_for is None else f"mined from {bank.settings['corpus']}"
        rows["negative labels"] = printable(f"{len(bank):,} {how}: {first_ones(bank.labels)}")
    # A classifier of its own names the labels, too.
    if detector.method.uses_text or detector.method.classify is None:
        rows |= _describe_templates(detector, detector.image_encoder)
    if fitted := detector.fitted_on:
        labelled = " with labels" if fitted["labelled"] else ""
        rows["fitted on"] = f"{counted(fitted['images'], 'image')}{labelled}, {fitted['date']}"
        if held_out := fitted.get("held_out"):
            rows["held-out images"] = describe_held_out(held_out)
        if finetuning := fitted.get("finetuning"):
            rows["fine-tuning"] = printable(describe_finetuning(finetuning))
        if pseudo_labels := fitted.get("pseudo_labels"):
            rows["pseudo-labels"] = printable(describe_balance(pseudo_labels))
    calibration = detector.calibration
    if detector.threshold is None:
        rows["threshold"] = "none, the rule of the method decides" if detector.method.is_ood else "none, no verdicts"
        return rows
    rows["threshold"] = describe_threshold(detector.threshold, calibration).removeprefix("threshold ")
    if calibration is None:
        rows["promise"] = "none, the threshold was set by hand"
        return rows
    if own := thresholds_of_labels(calibration):
        rows["threshold"] = "\n".join((rows["threshold"], *own))
    rows["promise"] = calibration.promise
    if calibration.max_id_rejection is not None:
        unknown = f" of known and {calibration.n_ood:,} of unknown things" if calibration.n_ood else ""
        rows["calibrated on"] = f"{counted(calibration.n, 'image')}{unknown}, {calibration.date}"
    else:
        rows["guessed on"] = str(calibration.date)
    return rows


__all__ = ["Activation", "convert", "info"]
