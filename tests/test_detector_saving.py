# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Detectors to folders and repositories and back: bit-equal, and never another one than was saved."""

import importlib
import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from clipn_hf import CLIPNModel, DualEncoder, IncompleteCheckpointError, OODDetector, detector_files, pipeline
from clipn_hf.detector_card import mark_threshold
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, PrecomputedEncoder
from clipn_hf.methods import METHODS
from clipn_hf.modeling import save_prompt_settings

LABELS = ["cat", "dog", "red bird", "tree"]
IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)) for seed in range(7)]
TRAINING = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
HELD_OUT = torch.randn(100, 24, generator=torch.Generator().manual_seed(2))
# Those that need images, a sigmoid model or an "unknown" prompt have tests of their own.
every_method = pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if not row.needs & {"sigmoid", "pixels", "patches", "unknown"}]
)
FEW = {
    "corpus": ["car", "house", "moon", "piano", "river", "shoe"],
    "fraction": 0.6,
    "filters": (),
    "max_similarity": None,
    "use_cache": False,
}


def ready(source: Any, method: str = "mcm", calibrated: bool = True, **options: Any) -> OODDetector:
    """A detector that is fitted and calibrated."""
    if isinstance(source, str | os.PathLike):
        options["device"] = "cpu"
    if "negatives" in METHODS[method].needs:
        # So warm that scores of random embeddings differ
        options = {"negatives": FEW, "temperature": 1.0, **options}
    if "min_confidence" in METHODS[method].settings:
        # Of random embeddings a model is not certain.
        options = {"min_confidence": None, **options}
    detector = OODDetector(source, LABELS, method, **options).fit(TRAINING, [row % 4 for row in range(40)])
    if calibrated:
        detector.calibrate(HELD_OUT, 0.1)
    return detector


def load(folder: Path, **options: Any) -> OODDetector:
    return OODDetector.from_pretrained(folder, device="cpu", **options)


def check_equal(found: OODDetector, expected: OODDetector) -> None:
    """Bit for bit, from pixels to answers."""
    for batch_size in (1, 2, 7, 32):
        assert torch.equal(found.score(IMAGES, batch_size), expected.score(IMAGES, batch_size))
        assert found(IMAGES, batch_size=batch_size) == expected(IMAGES, batch_size=batch_size)
    for count in (1, 3, 100):
        assert torch.equal(found.score(HELD_OUT[:count]), expected.score(HELD_OUT[:count]))
        assert found.results(HELD_OUT[:count]) == expected.results(HELD_OUT[:count])
    for name in ("labels", "templates", "method", "threshold", "calibration", "fitted_on"):
        assert getattr(found, name) == getattr(expected, name)
    if "no" in expected.method.needs:
        assert found.no_templates == expected.no_templates
    assert dict(found.settings) == dict(expected.settings)


def check_loads(folder: Path, expected: OODDetector) -> None:
    check_equal(load(folder), expected)
    detect = pipeline("ood-detection", model=str(folder), device="cpu")
    encoder = expected.image_encoder
    for batch_size in (1, 2, 7):
        # The pipeline embeds batches, and judges images one by one.
        batches = [IMAGES[start : start + batch_size] for start in range(0, len(IMAGES), batch_size)]
        embeddings = torch.cat([encoder.image_embeddings(encoder.prepare_images(batch)) for batch in batches])
        results = [expected.results(row[None])[0] for row in embeddings]
        assert detect(IMAGES, batch_size=batch_size) == results
    assert detect(IMAGES[0]) == expected(IMAGES[0])[0]


def edit_json(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "detector.json").read_text())
    edit(values)
    (folder / "detector.json").write_text(json.dumps(values))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Round trips


@every_method
def test_weights_inside(clipn_folder: Path, tmp_path: Path, method: str) -> None:
    detector = ready(clipn_folder, method)
    assert detector.save_pretrained(tmp_path / "detector") is None
    check_loads(tmp_path / "detector", detector)
    # From there on it needs nothing else, wherever it is.
    shutil.move(tmp_path / "detector", tmp_path / "moved")
    check_loads(tmp_path / "moved", detector)
    again = load(tmp_path / "moved")
    again.save_pretrained(tmp_path / "again")
    check_loads(tmp_path / "again", detector)


@every_method
def test_weights_by_folder(clipn_folder: Path, tmp_path: Path, method: str) -> None:
    shutil.copytree(clipn_folder, tmp_path / "here" / "model")
    detector = ready(tmp_path / "here" / "model", method)
    detector.save_pretrained(tmp_path / "here" / "detectors" / "one", include_weights=False)
    assert not list((tmp_path / "here" / "detectors" / "one").glob("model*"))
    check_loads(tmp_path / "here" / "detectors" / "one", detector)
    # Relative, so that both may move together.
    shutil.move(tmp_path / "here", tmp_path / "there")
    check_loads(tmp_path / "there" / "detectors" / "one", detector)
    again = load(tmp_path / "there" / "detectors" / "one")
    assert again.encoder.source == str(tmp_path / "there" / "model")
    again.save_pretrained(tmp_path / "again", include_weights=False)
    check_loads(tmp_path / "again", detector)


@every_method
@pytest.mark.filterwarnings("ignore:The covariances of 40 images", "ignore:40 images fill no more")
@pytest.mark.parametrize("include_weights", [True, False])
def test_embedded_checkpoint(tmp_path: Path, method: str, include_weights: bool) -> None:
    if not os.path.isdir(EMBEDDED_CHECKPOINT):
        pytest.skip("the embedded checkpoint is not there")
    options = {"negatives": FEW} if "negatives" in METHODS[method].needs else {}
    detector = OODDetector(None, LABELS, method, device="cpu", **options)
    dim = detector._texts.text.shape[1]
    generator = torch.Generator().manual_seed(0)
    detector.fit(torch.randn(40, dim, generator=generator), [row % 4 for row in range(40)])
    detector.calibrate(torch.randn(50, dim, generator=generator))
    detector.save_pretrained(tmp_path, include_weights)
    values = json.loads((tmp_path / "detector.json").read_text())
    assert (values["model"]["id"], values["model"]["weights"]) == (
        "clipn-tiny",
        "inside" if include_weights else "embedded",
    )
    assert EMBEDDED_CHECKPOINT not in (tmp_path / "detector.json").read_text()
    loaded = load(tmp_path)
    assert loaded(IMAGES) == detector(IMAGES)
    assert pipeline("ood-detection", model=str(tmp_path), device="cpu")(IMAGES) == detector(IMAGES, batch_size=1)


def test_a_model_from_memory(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, tmp_path: Path) -> None:
    detector = ready(DualEncoder(tiny_clipn, tiny_processor), "atd")
    with pytest.raises(ValueError, match="was not loaded from a folder or the Hub.*`include_weights=True`"):
        detector.save_pretrained(tmp_path / "detector", include_weights=False)
    assert not (tmp_path / "detector").exists()
    detector.save_pretrained(tmp_path / "detector")
    check_loads(tmp_path / "detector", detector)


@pytest.mark.parametrize("options", [{"per_label": True}, {"ood_images": TRAINING}, {"delta": 0.1}])
def test_every_kind_of_calibration(clipn_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    detector = ready(clipn_folder, "msp", calibrated=False, temperature=2.5)
    detector.calibrate(torch.cat([HELD_OUT, 2 - HELD_OUT, HELD_OUT.flip(1)]), 0.2, **options)
    detector.save_pretrained(tmp_path)
    check_loads(tmp_path, detector)
    assert np.array_equal(load(tmp_path).p_values(HELD_OUT), detector.p_values(HELD_OUT))


def test_a_threshold_from_texts(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "mcm", calibrated=False)
    calibration = detector.guess_threshold()
    detector.save_pretrained(tmp_path)
    check_loads(tmp_path, detector)
    assert f"exceeds {calibration.threshold:.6g}. {calibration.promise}" in card_of(tmp_path)
    with pytest.raises(ValueError, match="p-values need"):
        load(tmp_path).p_values(HELD_OUT)


@pytest.mark.parametrize("threshold", [None, 0.1, 1 / 3])
def test_without_calibration(clipn_folder: Path, tmp_path: Path, threshold: float | None) -> None:
    detector = ready(clipn_folder, "atd", calibrated=False, threshold=threshold)
    detector.save_pretrained(tmp_path)
    check_loads(tmp_path, detector)


def test_templates_and_settings_of_every_kind(clipn_folder: Path, tmp_path: Path) -> None:
    own = {"templates": ("the {}", "no {}"), "no_templates": ["not {}"]}
    detector = ready(clipn_folder, "ctw", **own)
    detector.save_pretrained(tmp_path / "own")
    check_loads(tmp_path / "own", detector)
    detector = ready(clipn_folder, "mcm", temperature=np.float32(0.3))
    detector.save_pretrained(tmp_path / "numpy")
    check_loads(tmp_path / "numpy", detector)


def test_unfitted_detectors_stay_unfitted(clipn_folder: Path, tmp_path: Path) -> None:
    OODDetector(clipn_folder, LABELS, "nearest_neighbors", device="cpu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be fitted"):
        load(tmp_path).score(IMAGES)
    with pytest.raises(ValueError, match=r"must be fitted before it judges; call `OODDetector\.fit\(id_images\)`"):
        pipeline("ood-detection", model=str(tmp_path), device="cpu")(IMAGES[0])


def test_what_was_fitted_on_is_known_after_loading(clipn_folder: Path, tmp_path: Path) -> None:
    ready(clipn_folder, "nearest_neighbors").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2 of 102 images that the method was fitted on"):
        load(tmp_path).calibrate(torch.cat([HELD_OUT, TRAINING[:2]]))


def test_a_loaded_detector_can_be_changed(clipn_folder: Path, tmp_path: Path) -> None:
    ready(clipn_folder, "mahalanobis").save_pretrained(tmp_path)
    detector = load(tmp_path)
    detector.templates = ["the {}"]
    assert detector.calibration is not None
    detector.labels = LABELS[:3]
    assert (detector.threshold, detector.fitted_on) == (None, None)
    detector.fit(TRAINING, [row % 3 for row in range(40)]).calibrate(HELD_OUT)
    detector.save_pretrained(tmp_path)
    check_loads(tmp_path, detector)


def test_tensors_that_share_memory_are_saved(
    clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = ready(clipn_folder, "nearest_neighbors")
    bank = torch.cat([detector._state["bank"]] * 2)
    detector._state = {"bank": bank[:40], "transposed": bank.T, "everything": bank}
    detector.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded._state["transposed"], bank.T)
    assert all(tensor.is_contiguous() for tensor in loaded._state.values())
    check_equal(loaded, detector)


def test_newer_defaults_do_not_change_what_was_saved(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "atd")
    detector.save_pretrained(tmp_path)
    encoder = DualEncoder.from_pretrained(tmp_path, device="cpu")
    encoder.templates, encoder.no_templates = ["another {}"], ["not another {}"]
    check_equal(OODDetector.from_pretrained(tmp_path, encoder=encoder), detector)


# The pipeline


def test_a_call_may_differ_from_the_detector(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "mcm")
    detector.save_pretrained(tmp_path)
    detect = pipeline("ood-detection", model=str(tmp_path), device="cpu")
    expected = detect(IMAGES)
    (by_hand,) = detect(IMAGES[:1], threshold=0.9)
    assert (by_hand["threshold"], by_hand["promise"], by_hand["p_value"]) == (0.9, None, None)
    (other,) = detect(IMAGES[:1], candidate_labels=["apple", "pear"])
    assert (other["threshold"], other["is_ood"]) == (None, None)
    assert other["label"] in ("apple", "pear")
    (other,) = detect(IMAGES[:1], method="atd")
    assert (other["method"], other["promise"]) == ("atd", None)
    assert other["is_ood"] in (True, False)
    with pytest.raises(TypeError, match=r"Method mcm does not know `temprature`, did you mean `temperature`\?"):
        detect(IMAGES[0], temprature=2.0)
    with pytest.raises(ValueError, match="Method nearest_neighbors must be fitted"):
        detect(IMAGES[0], method="nearest_neighbors")
    assert detect(IMAGES) == expected


@pytest.mark.parametrize("include_weights", [True, False])
def test_a_pipeline_saves_its_detector(clipn_folder: Path, tmp_path: Path, include_weights: bool) -> None:
    detector = ready(clipn_folder, "nearest_neighbors")
    detector.save_pretrained(tmp_path / "one", include_weights)
    pipeline("ood-detection", model=str(tmp_path / "one"), device="cpu").save_pretrained(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    check_loads(tmp_path / "two", detector)


def test_a_model_object_is_no_detector(clipn_folder: Path, tmp_path: Path) -> None:
    """It may have been trained further; only a name can mean the detector."""
    ready(clipn_folder).save_pretrained(tmp_path)
    model = CLIPNModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.visual_projection.weight.mul_(1.5)
    processor = AutoProcessor.from_pretrained(tmp_path)
    detect = pipeline("ood-detection", model=model, processor=processor, device="cpu")
    assert detect.detector is None
    with pytest.raises(ValueError, match="`candidate_labels` is missing"):
        detect(IMAGES[0])


# What is damaged, changed or missing


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values.update(schema_version=3, version="9.0"), "schema version 3, written by clipn-hf 9.0"),
        (lambda values: values.update(schema_version=0), "schema version 0, which this clipn-hf cannot read"),
        (lambda values: values.update(schema_version="1"), "without a `schema_version`"),
        (lambda values: values.update(schema_version=True), "without a `schema_version`"),
        (lambda values: values.pop("schema_version"), "without a `schema_version`"),
        (lambda values: values.pop("labels"), "labels is missing or not known"),
        (lambda values: values.update(colour=3), "colour is missing or not known"),
        (lambda values: values.update(threshold=0.9), "was changed after it was written"),
        (lambda values: values["calibration"].update(max_id_rejection=0.001), "was changed after it was written"),
        (lambda values: values["calibration"].update(threshold="high"), "was changed after it was written"),
        (lambda values: values["labels"].reverse(), "was changed after it was written"),
        (lambda values: values["settings"].update(temperature=3.0), "was changed after it was written"),
        (lambda values: values.update(method="energy"), "was changed after it was written"),
        (lambda values: values["model"].update(weights_sha256="0" * 64), "was changed after it was written"),
        (lambda values: values.update(tensors_sha256="0" * 64), "is not the one that detector.json"),
        (lambda values: values.update(model="clip"), "`model` is not what clipn-hf writes there, got 'clip'"),
        (lambda values: values["model"].pop("id"), "`model` is not what clipn-hf writes there"),
        (lambda values: values["model"].update(weights="cloud"), "`model` is not what clipn-hf writes there"),
    ],
)
def test_a_changed_description_is_refused(
    clipn_folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    ready(clipn_folder).save_pretrained(tmp_path)
    edit_json(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    with pytest.raises(ValueError, match=message):
        pipeline("ood-detection", model=str(tmp_path), device="cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "\x00"])
def test_a_description_that_is_none_is_refused(clipn_folder: Path, tmp_path: Path, content: str) -> None:
    ready(clipn_folder).save_pretrained(tmp_path)
    (tmp_path / "detector.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not JSON|without a `schema_version`"):
        load(tmp_path)


def test_changed_tensors_are_refused(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "nearest_neighbors")
    detector.save_pretrained(tmp_path)
    file = tmp_path / "detector.safetensors"
    original = file.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load(tmp_path)

    tensors = load_file(file)
    tensors["state.bank"] = -tensors["state.bank"]
    save_file(tensors, file)
    refused("detector.safetensors of the detector .* is not the one that detector.json was written with")
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    refused("is not the one that detector.json")
    file.write_bytes(original[:100])
    refused("is not the one that detector.json")
    file.unlink()
    refused("lacks detector.safetensors")
    file.write_bytes(original)
    check_loads(tmp_path, detector)
    # That of another detector, with a digest that fits
    ready(clipn_folder, "mcm").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "detector.safetensors", file)
    other = json.loads((tmp_path / "other" / "detector.json").read_text())
    edit_json(tmp_path, lambda values: values.update(tensors_sha256=other["tensors_sha256"]))
    refused("was changed after it was written")


def test_an_older_version_is_brought_up_to_date(
    clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a later version had renamed a key, twice."""
    detector = ready(clipn_folder, "nearest_neighbors")
    detector.save_pretrained(tmp_path)

    def rename(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda values: {new if name == old else name: value for name, value in values.items()}

    monkeypatch.setattr(detector_files, "SCHEMA_VERSION", 4)
    with pytest.raises(ValueError, match="schema version 2, which this clipn-hf cannot read; it reads 1, 4"):
        load(tmp_path)
    migrations = {2: rename("labels", "classes"), 3: rename("classes", "labels")}
    monkeypatch.setattr(detector_files, "MIGRATIONS", migrations)
    values = detector_files.read_detector(tmp_path)
    assert values is not None
    assert values["schema_version"] == 4
    check_loads(tmp_path, detector)
    load(tmp_path).save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "detector.json").read_text())["schema_version"] == 4
    check_loads(tmp_path / "new", detector)


def test_other_weights_are_refused(clipn_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    detector = ready(tmp_path / "model", "atd")
    detector.save_pretrained(tmp_path / "inside")
    detector.save_pretrained(tmp_path / "named", include_weights=False)
    for folder, weights in (("inside", tmp_path / "inside"), ("named", tmp_path / "model")):
        original = (weights / "model.safetensors").read_bytes()
        changed = load_file(weights / "model.safetensors")
        changed["visual_projection.weight"] *= 1.01
        save_file(changed, weights / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match="was made with other weights than those of .*the model has changed since"
        ):
            load(tmp_path / folder)
        with pytest.raises(ValueError, match="was made with other weights"):
            pipeline("ood-detection", model=str(tmp_path / folder), device="cpu")
        (weights / "model.safetensors").write_bytes(original)
        check_loads(tmp_path / folder, detector)
    with pytest.raises(
        ValueError, match="made with a CLIPNModel of another configuration or tokenizer than the CLIPM"
    ):
        OODDetector.from_pretrained(
            tmp_path / "inside", encoder=DualEncoder.from_pretrained(clip_folder, device="cpu")
        )


def test_missing_weights_are_named(clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    detector = ready(tmp_path / "model")
    detector.save_pretrained(tmp_path / "named", include_weights=False)
    detector.save_pretrained(tmp_path / "inside")
    detector.save_pretrained(tmp_path / "model", include_weights=False)
    check_loads(tmp_path / "model", detector)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(tmp_path / "model")
    with pytest.raises(IncompleteCheckpointError, match=r"The detector .*named names the model .*model, which cannot"):
        load(tmp_path / "named")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(IncompleteCheckpointError, match="names the folder ../model beside it, which does not exist"):
        load(tmp_path / "named")
    (tmp_path / "inside" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(tmp_path / "inside")


def test_no_detector(clipn_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"There is no detector at .*: it has no detector\.json"):
        load(clipn_folder)
    with pytest.raises(OSError, match="There is no detector at"):
        load(tmp_path)
    for nowhere in (tmp_path / "nothing", "nobody/nothing"):
        with pytest.raises(OSError, match="nothing"):
            OODDetector.from_pretrained(nowhere)


def test_a_folder_behind_a_link(clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    detector = ready(tmp_path / "model")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    detector.save_pretrained(tmp_path / "link" / "detector", include_weights=False)
    check_loads(tmp_path / "link" / "detector", detector)
    check_loads(tmp_path / "deep" / "down" / "detector", detector)
    (tmp_path / "other").symlink_to(tmp_path / "deep" / "down" / "detector")
    check_loads(tmp_path / "other", detector)


# Adapters


def adapted_folder(base: Path, folder: Path) -> Path:
    model = CLIPNModel.from_pretrained(base)
    attention = r"no_text_model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj"
    config = LoraConfig(r=2, target_modules=attention, init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    save_prompt_settings(adapted.config, folder)
    return folder


def test_adapters_are_named(clipn_folder: Path, tmp_path: Path) -> None:
    adapter = adapted_folder(clipn_folder, tmp_path / "adapter")
    detector = ready(adapter, "atd")
    assert not torch.equal(detector.score(IMAGES), ready(clipn_folder, "atd").score(IMAGES))
    with pytest.raises(ValueError, match="The model has an adapter.* Leave `include_weights` out, by which .* names"):
        detector.save_pretrained(tmp_path / "detector", include_weights=True)
    assert not (tmp_path / "detector").exists()
    detector.save_pretrained(tmp_path / "detector")
    check_loads(tmp_path / "detector", detector)
    pipeline("ood-detection", model=str(tmp_path / "detector"), device="cpu").save_pretrained(tmp_path / "again")
    check_loads(tmp_path / "again", detector)


def test_an_adapter_from_memory_cannot_be_named(clipn_folder: Path, tmp_path: Path) -> None:
    """Named by its base model alone, the detector would lose the adapter."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(CLIPNModel.from_pretrained(clipn_folder), config)
    detector = ready(DualEncoder(adapted, AutoProcessor.from_pretrained(clipn_folder)), "mcm")
    for include_weights in (None, True, False):
        with pytest.raises(ValueError, match="adapter.*make the detector of its folder or Hub id"):
            detector.save_pretrained(tmp_path / "detector", include_weights)
    assert not (tmp_path / "detector").exists()


# Saving over something


def test_saving_again_replaces_the_detector(clipn_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    first, second, third = ready(clipn_folder, "atd"), ready(clip_folder, "energy"), ready(clip_folder, "mahalanobis")
    for detector, include_weights in ((first, True), (second, True), (third, False), (first, False), (second, True)):
        detector.save_pretrained(tmp_path / "detector", include_weights)
        check_loads(tmp_path / "detector", detector)
        assert bool(list((tmp_path / "detector").glob("model*"))) == include_weights
        assert not list((tmp_path / "detector").glob(".*"))


def test_saving_into_the_folder_that_it_was_loaded_from(clipn_folder: Path, tmp_path: Path) -> None:
    ready(clipn_folder, "nearest_neighbors").save_pretrained(tmp_path)
    detector = load(tmp_path)
    detector.threshold = 0.25
    for include_weights in (True, False, True):
        detector.save_pretrained(tmp_path, include_weights)
        check_loads(tmp_path, detector)
        assert (tmp_path / "model.safetensors").is_file()


def test_shards_of_an_earlier_model_are_removed(clipn_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    CLIPNModel.from_pretrained(clipn_folder).save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    (tmp_path / "model-card.bin").write_bytes(b"mine")
    detector = ready(clip_folder)
    detector.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("model*")} == {"model.safetensors", "model-card.bin"}
    check_loads(tmp_path, detector)


def test_somebody_elses_weights_are_not_touched(clipn_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(ValueError, match="has the weights of a model in model.safetensors.*save to another folder"):
        ready(clip_folder).save_pretrained(tmp_path / "model", include_weights=False)
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("broken", ["setting", "processor", "tensors", "replacing"])
def test_nothing_is_half_written(
    clipn_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, broken: str
) -> None:
    folder, first = tmp_path / "detector", ready(clip_folder)
    if exists:
        first.save_pretrained(folder)
    before = contents(tmp_path)
    second = ready(clipn_folder, "atd")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as context:
        if broken == "setting":
            second._settings = {"temperature": object()}
        elif broken == "processor":
            context.setattr(type(second.image_encoder.processor), "save_pretrained", fail)
        elif broken == "tensors":
            context.setattr(detector_files, "save_file", fail)
        else:
            context.setattr(os, "replace", fail)
        with pytest.raises((OSError, TypeError), match="disk full|JSON"):
            second.save_pretrained(folder)
    assert contents(tmp_path) == before
    assert folder.exists() == exists
    if exists:
        check_loads(folder, first)


def test_embeddings_alone_cannot_be_saved(tmp_path: Path) -> None:
    encoder = PrecomputedEncoder({"a": [1.0, 0.0], "b": [0.0, 1.0]}, "some-clip", ["{}"])
    with pytest.raises(TypeError, match="PrecomputedEncoder has no model to be saved with"):
        OODDetector(encoder, ["a", "b"], "mcm").save_pretrained(tmp_path / "detector")
    assert not (tmp_path / "detector").exists()


# Cards


def card_of(folder: Path) -> str:
    """The card in one line."""
    return " ".join((folder / "README.md").read_text(encoding="utf-8").split())


def test_card_tells_how_many_groups_there_are(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "neglabel", negatives=[f"thing {number}" for number in range(230)])
    detector.save_pretrained(tmp_path)
    assert "| Settings | `temperature` = 1.0, `num_groups` = 2, `seed` = 0 |" in card_of(tmp_path)
    # With other negative labels there will be others.
    assert load(tmp_path).settings["num_groups"] is None
    detector.with_changes(num_groups=7).save_pretrained(tmp_path)
    assert "`num_groups` = 7," in card_of(tmp_path)


def test_card_tells_what_the_threshold_promises(clipn_folder: Path, tmp_path: Path) -> None:
    detector = ready(clipn_folder, "mcm", temperature=2.0)
    calibration = detector.calibration
    assert calibration is not None
    detector.save_pretrained(tmp_path / "cats")
    card = card_of(tmp_path / "cats")
    for part in (
        "# cats",
        'pipeline("ood-detection", model="path/to/cats")',
        "Tells images of 4 known things",
        "`cat`, `dog`, `red bird`, `tree`.",
        "Maximum concept matching (`mcm`), [2211.13445](https://arxiv.org/abs/2211.13445)",
        "`temperature` = 2.0",
        f"An image is unknown when its score exceeds {calibration.threshold:.6g}.",
        calibration.promise,
        f"Calibrated on 100 images on {calibration.date}",
        f"`{calibration.data_sha256}`",
    ):
        assert part in card
    data = ModelCard.load(tmp_path / "cats" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert {"clipn_hf", "ood-detection"} <= set(data.tags)
    assert str(tmp_path) not in card
    assert "Fitted on" not in card


def test_card_tells_of_every_kind_of_threshold(clipn_folder: Path, tmp_path: Path) -> None:
    def card(detector: OODDetector) -> str:
        detector.save_pretrained(tmp_path / "detector")
        return card_of(tmp_path / "detector")

    by_rule = card(ready(clipn_folder, "atd", calibrated=False))
    assert "None: the rule of the method decides. It promises nothing." in by_rule
    assert '| "No" templates |' in by_rule
    none = card(ready(clipn_folder, "mcm", calibrated=False))
    assert "gives scores and no verdicts. Calibrate it" in none
    assert '"No" templates' not in none
    by_hand = card(ready(clipn_folder, "mcm", calibrated=False, threshold=0.125))
    assert "exceeds 0.125. It was set by hand and promises nothing." in by_hand
    detector = ready(clipn_folder, "nearest_neighbors", calibrated=False)
    many = torch.cat([HELD_OUT, 2 - HELD_OUT, HELD_OUT.flip(1)])
    calibration = detector.calibrate(many, 0.2, per_label=True, ood_images=-HELD_OUT)
    own = card(detector)
    assert "exceeds the threshold of its nearest label" in own
    for group in calibration.groups:
        assert f"| {group.label} | {group.threshold:.6g} | {group.n} |" in own
    assert str(calibration.ood_data_sha256) in own
    assert f"known below {calibration.known_below:.6g}, and else unsure" in own
    assert "| Fitted on | 40 images with labels, " in own
    assert calibration.promise in own


def test_card_with_odd_labels(clipn_folder: Path, tmp_path: Path) -> None:
    labels = ["a|b", "c\nd", "`e`", *(f"thing {number}" for number in range(300))]
    OODDetector(clipn_folder, labels, "mcm", device="cpu", templates=["a | {}"]).save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert "`a|b`, `c d`, `'e'`, `thing 0`" in card
    assert "`thing 196` and 103 more." in card
    assert "`thing 197`" not in card
    assert "| Templates | `a \\| {}` |" in card
    OODDetector(clipn_folder, ["cat"], "atd", device="cpu").save_pretrained(tmp_path)
    assert "Tells images of 1 known thing from" in card_of(tmp_path)


@pytest.mark.parametrize("text", [b"# Mine\n", b"\xff\xfe caf\xe9"])
def test_somebody_elses_card_is_kept(
    clipn_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    (tmp_path / "README.md").write_bytes(text)
    ready(clipn_folder).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == text
    assert "README.md is not the card of a detector and stays as it is" in caplog.text
    caplog.clear()
    (tmp_path / "README.md").unlink()
    for _ in range(2):
        ready(clipn_folder).save_pretrained(tmp_path)
    assert "README.md" not in caplog.text


# Publishing


class FakeHub:
    """Stands in for `HfApi`: keeps what is uploaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, token: str | None = None) -> "FakeHub":
        self.calls.append(("token", {"token": token}))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return types.SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"someone/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, folder_path: Path, repo_id: str, **options: Any) -> str:
        for name in options.pop("allow_patterns"):
            self.folder.mkdir(exist_ok=True)
            shutil.copy(folder_path / name, self.folder / name)
        self.calls.append(("upload_folder", {"repo_id": repo_id, **options}))
        return f"https://example.org/{repo_id}/commit/1"

    def hf_hub_download(self, repo_id: str, filename: str, revision: str | None = None) -> str:
        if not (self.folder / filename).exists():
            raise EntryNotFoundError(filename)
        return str(self.folder / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("clipn_hf.detector_saving.HfApi", fake)
    return fake


def test_push_to_hub_takes_one_commit(clipn_folder: Path, hub: FakeHub) -> None:
    detector = ready(clipn_folder, "nearest_neighbors")
    address = detector.push_to_hub("cats", private=True, token="secret", commit_message="Here it is")
    assert address == "https://example.org/someone/cats/commit/1"
    assert hub.calls == [
        ("token", {"token": "secret"}),
        ("create_repo", {"repo_id": "cats", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "someone/cats", "commit_message": "Here it is"}),
    ]
    check_loads(hub.folder, detector)
    assert 'pipeline("ood-detection", model="someone/cats")' in card_of(hub.folder)
    assert not list(hub.folder.glob("*.py"))


def test_a_card_that_was_edited_on_the_hub_stays(
    clipn_folder: Path, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    detector = ready(clipn_folder)
    detector.push_to_hub("someone/cats")
    assert "of new ID images like the calibration images" in card_of(hub.folder)
    (hub.folder / "README.md").write_text("My own words.", encoding="utf-8")
    detector.push_to_hub("someone/cats")
    assert card_of(hub.folder) == "My own words."
    assert "README.md of someone/cats is not the card of a detector and stays as it is" in caplog.text


def test_a_card_that_tells_another_threshold_is_replaced(
    clipn_folder: Path, tmp_path: Path, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    detector = ready(clipn_folder, calibrated=False)
    detector.save_pretrained(tmp_path / "cats")
    (tmp_path / "cats" / "README.md").write_text(f"# Ours\n\n{mark_threshold('None yet.')}\n", encoding="utf-8")
    hub.folder.mkdir()
    shutil.copy(tmp_path / "cats" / "README.md", hub.folder)
    detector.calibrate(HELD_OUT, 0.1)
    assert detector.calibration is not None
    detector.save_pretrained(tmp_path / "cats", push_to_hub=True)
    assert card_of(hub.folder).startswith("# Ours <!-- Threshold, ")
    assert "None yet" not in card_of(hub.folder)
    assert detector.calibration.promise in card_of(hub.folder)
    assert "stays as it is" not in caplog.text
    # Beside the threshold it is another card.
    (hub.folder / "README.md").write_text(f"# Theirs\n\n{mark_threshold('None yet.')}\n", encoding="utf-8")
    detector.save_pretrained(tmp_path / "cats", push_to_hub=True)
    assert card_of(hub.folder).startswith("# Theirs <!-- Threshold, ")
    assert "README.md of someone/cats is not the card of a detector and stays as it is" in caplog.text


def test_a_pipeline_publishes_its_detector_with_its_card(clipn_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    detector = ready(clipn_folder)
    detector.save_pretrained(tmp_path / "one")
    detect = pipeline("ood-detection", model=str(tmp_path / "one"))
    detect.push_to_hub("someone/cats")
    assert detector.calibration is not None
    assert detector.calibration.promise in card_of(hub.folder)
    check_loads(hub.folder, detector)
    detect.save_pretrained(tmp_path / "two", push_to_hub=True, repo_id="someone/dogs")
    assert 'model="someone/dogs"' in card_of(hub.folder)


def test_half_precision_comes_back(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    load = DualEncoder.from_pretrained.__func__  # type: ignore[attr-defined]

    def spy(cls: Any, source: Any, processor: Any = None, device: Any = None, dtype: Any = None, **rest: Any) -> Any:
        asked.append(dtype)
        return load(cls, source, processor, device, None, **rest)

    encoder = DualEncoder.from_pretrained(clip_folder, device="cpu")
    encoder.model.to(torch.bfloat16)  # As on an accelerator
    detector = OODDetector(encoder, LABELS, "mcm")
    detector.calibrate(HELD_OUT)
    detector.save_pretrained(tmp_path / "one")
    monkeypatch.setattr(DualEncoder, "from_pretrained", classmethod(spy))
    OODDetector.from_pretrained(tmp_path / "one")
    assert asked == ["bfloat16"]
    assert "was made in bfloat16 and computes in float32" in caplog.text


@pytest.mark.parametrize("part", ["visual_projection", "text_projection"])
def test_a_model_that_is_trained_further_ends_the_promise(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    detector = ready(clip_folder)
    assert detector.calibration is not None
    with torch.no_grad():
        getattr(detector.image_encoder.model, part).weight.mul_(1 + 0.1 * torch.rand(24, 32))
    detector.save_pretrained(tmp_path / "one")
    assert "has dropped its threshold" in caplog.text and "because `model` changed" in caplog.text
    assert (detector.threshold, detector.calibration) == (None, None)
    loaded = load(tmp_path / "one")
    fresh = OODDetector(detector.encoder, LABELS, "mcm", **detector.settings)
    for other in (loaded, fresh):
        assert torch.equal(detector.score(HELD_OUT), other.score(HELD_OUT))
    # What is calibrated from now on is calibrated with the labels as the new weights embed them.
    detector.calibrate(HELD_OUT)
    detector.save_pretrained(tmp_path / "two")
    assert torch.equal(detector.score(HELD_OUT), load(tmp_path / "two").score(HELD_OUT))


def test_every_entry_follows_the_model(clip_folder: Path) -> None:
    def judge(detector: OODDetector) -> None:
        detector(Image.new("RGB", (40, 40), "red"))

    def value(detector: OODDetector) -> None:
        with pytest.raises(ValueError, match="p-values need a calibrated detector"):
            detector.p_values(HELD_OUT)

    def change_templates(detector: OODDetector) -> None:
        detector.templates = ["a sketch of a {}."]

    def score(detector: OODDetector) -> None:
        detector.score(HELD_OUT)

    def predict(detector: OODDetector) -> None:
        detector.predict(HELD_OUT)

    def copy(detector: OODDetector) -> None:
        detector.with_changes(threshold=0.5)

    # Templates do not matter to this method, but the model does.
    images_alone = ready(clip_folder, "nearest_neighbors")
    with torch.no_grad():
        images_alone.image_encoder.model.visual_projection.weight.add_(0.01)
    change_templates(images_alone)
    assert images_alone.calibration is None
    assert images_alone.fitted_on is None

    for entry in (judge, value, score, predict, copy):
        for change in ("weights", "processor"):
            detector = ready(clip_folder)
            if change == "weights":
                with torch.no_grad():
                    detector.image_encoder.model.visual_projection.weight.add_(0.01)
            else:
                detector.image_encoder.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
            entry(detector)
            assert detector.calibration is None


def test_moving_the_weights_changes_nothing(clip_folder: Path) -> None:
    detector = ready(clip_folder)
    for parameter in detector.image_encoder.model.parameters():
        parameter.data = parameter.data.clone()
    detector.score(HELD_OUT)
    assert detector.calibration is not None


def test_another_configuration_is_noticed(clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(clip_folder)
    detector.save_pretrained(tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of another configuration or tokenizer"):
        load(tmp_path / "one")
    # Also in place of the model of a detector, though the weights are the same.
    detector.encoder = tmp_path / "one"  # type: ignore[assignment]
    assert detector.calibration is None
    assert "because `encoder` changed" in caplog.text


def test_methods_that_read_images_alone_keep_what_they_know_with_another_text_encoder(
    clip_folder: Path, tmp_path: Path
) -> None:
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.text_projection.weight.mul_(1.1)
    other = DualEncoder(model, CLIPProcessor.from_pretrained(clip_folder), "cpu")
    kept, dropped = ready(clip_folder, "nearest_neighbors"), ready(clip_folder, "mcm")
    for detector in (kept, dropped):
        detector.encoder = other
    assert kept.calibration is not None
    assert dropped.calibration is None
    kept.save_pretrained(tmp_path)
    check_loads(tmp_path, kept)


def test_a_detector_beside_its_model_leaves_the_weights_alone(clip_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    shutil.copytree(clip_folder, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    detector = ready(tmp_path / "model")
    detector.save_pretrained(tmp_path / "model", include_weights=False, push_to_hub=True, repo_id="someone/cats")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    check_loads(tmp_path / "model", detector)
    check_loads(hub.folder, detector)


def test_a_detector_beside_its_adapter_is_published_with_it(
    clipn_folder: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapted_folder(clipn_folder, tmp_path / "adapter")
    (adapter / "training_args.bin").write_bytes(b"private")
    detector = ready(adapter, "atd")
    publish = {"include_weights": False, "push_to_hub": True, "repo_id": "someone/cats"}
    with pytest.raises(ValueError, match=r"is for the model in the local folder .*, which is not on the Hub"):
        detector.save_pretrained(adapter, **publish)
    assert not hub.calls
    # Names on the Hub are no folders; one that leads nowhere but from here stands for them.
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "someone/clipn"}))
    detector.save_pretrained(adapter, **publish)
    assert {"adapter_config.json", "adapter_model.safetensors", "clipn_prompts.json"} <= contents(hub.folder).keys()
    assert not {"training_args.bin", "model.safetensors"} & contents(hub.folder).keys()
    (tmp_path / "someone").mkdir()
    shutil.copytree(clipn_folder, tmp_path / "someone" / "clipn")
    monkeypatch.chdir(tmp_path)
    check_loads(hub.folder, detector)


def test_an_adapter_elsewhere_cannot_be_named_on_the_hub(clipn_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    detector = ready(adapted_folder(clipn_folder, tmp_path / "adapter"), "atd")
    with pytest.raises(ValueError, match=r"for its adapter, which is not on the Hub; save the detector into that"):
        detector.push_to_hub("cats", include_weights=False)
    assert not hub.calls


@pytest.mark.parametrize("include_weights", [True, False])
def test_the_adapter_of_another_model_is_not_taken(clipn_folder: Path, tmp_path: Path, include_weights: bool) -> None:
    adapter = adapted_folder(clipn_folder, tmp_path / "adapter")
    before = contents(adapter)
    with pytest.raises(ValueError, match="has an adapter, which would be put on the model of the detector"):
        ready(clipn_folder, "atd").save_pretrained(adapter, include_weights)
    assert contents(adapter) == before


def test_somebody_elses_pytorch_weights_stay(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"precious")
    detector = ready(clip_folder)
    detector.save_pretrained(tmp_path)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"precious"
    check_loads(tmp_path, detector)


def test_other_image_processors_are_noticed(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(clip_folder).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    text = file.read_text()
    assert '"shortest_edge": 32' in text
    OODDetector.from_pretrained(tmp_path)
    assert "prepares images in another way" not in caplog.text
    file.write_text(text.replace('"shortest_edge": 32', '"shortest_edge": 40'))
    OODDetector.from_pretrained(tmp_path)
    assert "prepares images in another way" in caplog.text


def test_what_a_detector_brings_is_not_to_be_given(clip_folder: Path, tmp_path: Path) -> None:
    ready(clip_folder).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="`labels` comes with the detector.*`with_changes`"):
        OODDetector.from_pretrained(tmp_path, labels=LABELS)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        ready(clip_folder).save_pretrained(tmp_path / "file")


def test_save_and_push(clipn_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    detector = ready(clipn_folder)
    with pytest.raises(TypeError, match="`private` is for publishing; set `push_to_hub=True`"):
        detector.save_pretrained(tmp_path / "cats", private=True)
    with pytest.raises(TypeError, match="does not know `incluce_weights`, did you mean `include_weights`"):
        detector.save_pretrained(tmp_path / "cats", incluce_weights=False)
    assert not (tmp_path / "cats").exists()
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("mine")
    detector.save_pretrained(tmp_path / "cats", push_to_hub=True)
    assert contents(hub.folder).keys() == contents(tmp_path / "cats").keys() - {"notes.txt"}
    assert ("upload_folder", {"repo_id": "someone/cats", "commit_message": "Upload detector"}) in hub.calls
    check_loads(tmp_path / "cats", detector)
    detector.save_pretrained(tmp_path / "cats", push_to_hub=True, repo_id="org/dogs", revision="trial")
    assert ("create_branch", {"repo_id": "org/dogs", "branch": "trial", "exist_ok": True}) in hub.calls
    assert hub.calls[-1][1]["revision"] == "trial"
    assert 'model="org/dogs"' in card_of(hub.folder)


def test_a_local_model_cannot_be_named_on_the_hub(clipn_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    detector = ready(clipn_folder)
    with pytest.raises(
        ValueError, match="local folder .*, which is not on the Hub; publish with `include_weights=True`"
    ):
        detector.push_to_hub("cats", include_weights=False)
    assert not hub.calls


def test_a_model_of_the_hub_is_named_with_its_revision(clipn_folder: Path, tmp_path: Path, hub: FakeHub) -> None:
    encoder = DualEncoder.from_pretrained(clipn_folder, device="cpu")
    encoder.source, encoder.revision = "org/clipn", "0123456789abcdef"
    detector = ready(encoder)
    detector.push_to_hub("cats", include_weights=False)
    model = json.loads((hub.folder / "detector.json").read_text())["model"]
    assert (model["id"], model["revision"], model["weights"]) == ("org/clipn", "0123456789abcdef", "hub")
    assert not list(hub.folder.glob("model*"))
    assert ModelCard.load(hub.folder / "README.md").data.base_model == "org/clipn"
    assert "`org/clipn`, revision `0123456789abcdef`" in card_of(hub.folder)
    # It cannot be reached from here.
    with pytest.raises(
        IncompleteCheckpointError, match="names the model org/clipn at revision 0123456789abcdef, which"
    ):
        load(hub.folder)
    check_equal(OODDetector.from_pretrained(hub.folder, encoder=encoder), detector)


def test_none_means_the_default_in_calls(clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = ready(clip_folder)
    detector.save_pretrained(tmp_path)
    detect = pipeline("ood-detection", model=str(tmp_path), device="cpu")
    image = Image.new("RGB", (40, 40), "red")
    expected = detect(image)
    assert expected["threshold"] == detector.threshold
    caplog.clear()
    assert detect(image, candidate_labels=None, threshold=None, method=None, templates=None) == expected
    assert not caplog.records
    # What differs in every call is said once.
    for _ in range(3):
        detect(image, candidate_labels=["one", "two"], threshold=0.5)
    assert caplog.text.count("has dropped its threshold") == 1


def test_misspelt_loading_arguments_are_named(clip_folder: Path, tmp_path: Path) -> None:
    ready(clip_folder).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="from_pretrained does not know `devise`, did you mean `device`"):
        OODDetector.from_pretrained(tmp_path, devise="cpu")
    with pytest.raises(TypeError, match="`temperature` comes with the detector"):
        OODDetector.from_pretrained(tmp_path, temperature=2.0)


REMOTE_CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class OwnConfig(PreTrainedConfig):
    model_type = "own_dual"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.tokens, self.patches = nn.Embedding(1000, 24), nn.Linear(3 * 32 * 32, 24)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.post_init()

    def get_image_features(self, pixel_values):
        return self.patches(pixel_values.flatten(1))

    def get_text_features(self, input_ids, attention_mask):
        return (self.tokens(input_ids) * attention_mask[..., None]).sum(1)
"""


@pytest.mark.parametrize("include_weights", [True, False])
def test_models_with_code_of_their_own(
    tiny_processor: CLIPProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, include_weights: bool
) -> None:
    model_folder, folder = tmp_path / "own_model", tmp_path / "detector"
    model_folder.mkdir()
    (model_folder / "modeling_own.py").write_text(REMOTE_CODE)
    monkeypatch.syspath_prepend(model_folder)
    monkeypatch.delitem(sys.modules, "modeling_own", raising=False)
    module = importlib.import_module("modeling_own")
    model = module.OwnModel(module.OwnConfig())
    model.config.auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    model.save_pretrained(model_folder)
    tiny_processor.save_pretrained(model_folder)
    detector = ready(DualEncoder.from_pretrained(model_folder, device="cpu", trust_remote_code=True))
    detector.save_pretrained(folder, include_weights=include_weights)
    check_equal(load(folder, trust_remote_code=True), detector)
    check_equal(load(folder, encoder=detector.encoder, trust_remote_code=True), detector)


def test_a_detector_in_place_of_a_model_is_said(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(clip_folder).save_pretrained(tmp_path)
    OODDetector(tmp_path, LABELS, "mcm")
    assert "is a detector, of which the model alone is used" in caplog.text
