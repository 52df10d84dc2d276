# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommands `info` and `convert`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import CLIPProcessor, SiglipConfig, SiglipModel

from clipn_hf import OODDetector
from clipn_hf.methods import METHODS
from clipn_hf.probing import LinearProbe, PseudoLabels

if TYPE_CHECKING:
    from conftest import Command


def test_info_of_a_detector(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    output = tmp_path / "detector"
    labels = [f"thing {number}" for number in range(12)]

    def rows(source: Path = output) -> dict[str, str]:
        code, out, _ = run("info", source)
        assert code == 0
        lines = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in out.splitlines() if line[0] != " "]
        return dict(lines)

    code, _, err = run(
        "calibrate", many_images / "cat", "--fit-on", many_images / "dog", "--labels", ",".join(labels), "--model",
        clipn_folder, "--method", "nearest_neighbors", "--setting", "k=2", "--output", output, "--template", "a {}.",
    )  # fmt: skip
    assert code == 0, err
    detector = OODDetector.from_pretrained(output)
    assert detector.calibration is not None and detector.fitted_on is not None
    shown = rows()
    assert shown["detector"] == str(output)
    assert shown["labels"] == f"12: {', '.join(labels[:10])} and 2 more"
    assert shown["method"] == "nearest_neighbors, Nearest neighbors"
    assert shown["settings"].startswith("k=2, reduction=mean")
    assert shown["fitted on"] == f"24 images, {detector.fitted_on['date']}"
    assert shown["threshold"] == f"{detector.threshold:.6g}"
    assert shown["promise"] == detector.calibration.promise
    assert shown["calibrated on"] == f"24 images, {detector.calibration.date}"
    assert shown["templates"] == "a {}."
    # They are the detector's, and not those of the checkpoint.
    assert list(shown).index("templates") < list(shown).index("checkpoint")
    assert list(rows(clipn_folder)).index("templates") > list(rows(clipn_folder)).index("checkpoint")
    assert shown["model"] == "CLIPNModel, type clipn"
    for threshold, expected in ((0.5, ("0.5", "none, the threshold was set by hand")), (None, ("none, no verdicts",))):
        detector.threshold = threshold
        detector.save_pretrained(output)
        shown = rows()
        assert tuple(shown[name] for name in ("threshold", "promise") if name in shown) == expected
    OODDetector(clipn_folder, labels).save_pretrained(output)
    shown = rows()
    assert shown["threshold"] == "none, the rule of the method decides"
    assert not {"settings", "fitted on", "promise"} & shown.keys()


def test_info_of_a_detector_names_the_number_of_groups_that_is_in_effect(
    run: Command, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    negatives = [f"thing {number}" for number in range(250)]
    OODDetector(clip_folder, ["cat", "dog"], "neglabel", negatives=negatives).save_pretrained(tmp_path / "detector")
    out = run("info", tmp_path / "detector").out
    assert re.search(r"^settings +temperature=0.01, num_groups=2, seed=0 *$", out, flags=re.MULTILINE)


def test_info(run: Command, clip_folder: Path, clipn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("info", clipn_folder)
    assert code == 0
    rows = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["checkpoint"] == str(clipn_folder)
    assert rows["model"] == "CLIPNModel, type clipn"
    assert rows["image encoder"] == "2 layers of width 32 (MLP 64), 32 × 32 pixels in patches of 8"
    assert rows['"no" prompts'] == "learnable, 16"
    assert rows["stored as"] == "float32"
    assert float(rows["logit scale"]) > 1
    served = [name for name, method in METHODS.items() if not method.needs & {"sigmoid", "unknown"}]
    assert rows["methods"] == ", ".join(served)
    of_sigmoid = "sigmoid, joint_energy: for a model that was trained with a sigmoid loss, such as SigLIP"
    assert rows["not served"] == of_sigmoid
    code, out, _ = run("info", clip_folder)
    assert code == 0
    assert "CLIPModel, type clip" in out
    assert "mcm, msp, max_logit, energy" in out
    assert 'atd, ctw: for a CLIPN model with a "no" text encoder\n' in re.sub(" +\n", "\n", out)
    assert of_sigmoid in out
    for gone in (clip_folder / "gone", "./gone", "~/gone", "a/b/gone"):
        code, _, err = run("info", gone)
        assert (code, err) == (
            1,
            f"Error: There is no folder {gone}; name one with a model, or the id of a model on the Hub.\n",
        )


@pytest.fixture
def siglip_folder(tmp_path: Path, clip_folder: Path) -> Path:
    """A tiny random SigLIP with the processor of the tiny CLIP."""
    processor = CLIPProcessor.from_pretrained(clip_folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    folder = tmp_path / "siglip"
    SiglipModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_info_of_another_family(run: Command, siglip_folder: Path) -> None:
    code, out, err = run("info", siglip_folder)
    assert code == 0, err
    rows = dict(line.split("  ", 1) for line in out.splitlines() if not line.startswith(" "))
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["model"] == "SiglipModel, type siglip"
    assert rows["image encoder"] == "2 layers, width 16, 32 × 32 pixels, patches of 8"
    assert re.fullmatch(r"2 layers, width 16, \d\d\d tokens", rows["text encoder"])
    assert re.fullmatch(r"\S+, trained with a sigmoid loss", rows["logit bias"])
    assert {"sigmoid", "joint_energy", "mcm"} <= set(rows["methods"].split(", "))


def test_convert(run: Command, tmp_path: Path) -> None:
    source = Path(__file__).parent / "data" / "clipn_official.state_dict.safetensors"
    code, out, _ = run("convert", source, tmp_path / "converted", "--vision-heads", 4, "--text-heads", 4)
    assert code == 0
    assert "learnable" in out
    assert "no processor was named" in out
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    options = ("convert", source, tmp_path / "converted", "--vision-heads", 4, "--text-heads", 4)
    code, _, err = run(*options)
    assert code == 1
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert run(*options, "--overwrite").code == 0
    options = (*options[:2], tmp_path / "quick", *options[3:], "--activation", "quick_gelu")
    templates = (
        "--template",
        "a {}.",
        "--template",
        "the {}.",
        "--no-template",
        "no {}.",
        "--no-template",
        "not the {}.",
    )
    assert run(*options, *templates).code == 0
    config = json.loads((tmp_path / "quick" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["hidden_act"] == "quick_gelu"
    assert config["templates"] == ["a {}.", "the {}."]
    assert config["no_templates"] == ["no {}.", "not the {}."]
    for bad, message in (
        (("--template", "an icon"), "`templates[0]` must contain"),
        (("--no-template", "{} {}"), "`no_templates[0]` must contain"),
    ):
        code, _, err = run("convert", source, tmp_path / "bad", "--vision-heads", 4, "--text-heads", 4, *bad)
        assert (code, len(err.splitlines())) == (1, 1)
        assert err.startswith("Error: ")
        assert message in err
        assert not (tmp_path / "bad").exists()
    assert run(*options[:2], tmp_path / "other", "--activation", "relu").code == 2
    code, _, err = run("convert", tmp_path / "gone.pt", tmp_path / "other")
    assert (code, "gone.pt" in err) == (1, True)


def test_info_of_a_finetuned_detector_states_what_is_known(
    run: Command, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    held_out = {"best_epoch": 3, "validation_loss": 0.25, "validation_accuracy": 0.9}
    probe = LinearProbe(OODDetector(clipn_folder, ["cat"]).dim, 2, ["cat", "dog"])
    finetuning = {"base": "/models/me/clip", "tuning": "lora", "epochs": 2}
    probe.trained_on = {"images": 9, "labelled": True, "date": "2026-01-01", "sha256": "0" * 64} | held_out
    probe.trained_on["finetuning"] = finetuning
    OODDetector.from_probe(clipn_folder, probe).save_pretrained(tmp_path / "detector")
    code, out, err = run("info", tmp_path / "detector")
    assert code == 0, err
    rows = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in out.splitlines() if line[0] != " ")
    assert rows["settings"] == "score=msp, temperature=1.0"
    assert rows["fitted on"] == "9 images with labels, 2026-01-01"
    assert rows["held-out images"] == "loss 0.25, accuracy 90.0% after epoch 3, the best one, of which the probe is"
    assert rows["fine-tuning"] == (
        "the head was trained together with the image encoder of clip, by low-rank adapters (LoRA); epochs = 2"
    )
    assert "templates" not in rows


def test_balance_of_pseudo_labels_is_told(
    run: Command, many_images: Path, clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    labels, kept = torch.arange(24) % 4 // 3, torch.arange(24) >= 4
    found = PseudoLabels(labels, torch.ones(24), kept, 2)
    monkeypatch.setattr("clipn_hf.probing.pseudo_label", lambda *_: found)
    code, _, err = run(
        "calibrate", many_images / "cat", "--fit-on", many_images / "dog", "--labels", "cat,dog", "--model",
        clipn_folder, "--method", "plp", "--setting", "min_confidence=None", "--output", tmp_path / "detector",
    )  # fmt: skip
    assert code == 0, err
    told = "20 of 24 images kept; fewest 5 (dog), most 15 (cat)"
    assert f"Pseudo-labels: {told}" in " ".join(err.split())
    code, out, _ = run("info", tmp_path / "detector")
    assert re.search(rf"^pseudo-labels +{re.escape(told)} *$", out, re.MULTILINE)
