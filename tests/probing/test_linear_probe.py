# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a linear probe computes, and how it is saved, published and loaded."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from clipn_hf import training
from clipn_hf.probing import LinearProbe, train_linear_probe

NAMES = ["cat", "dog", "red | bird"]
ENCODER = {"id": "org/model", "dtype": "float32", "sha256": "0" * 64, "image_processor_sha256": "1" * 64}


def random_probe(**arguments: Any) -> LinearProbe:
    generator = torch.Generator().manual_seed(0)
    probe = LinearProbe(6, 3, **{"labels": NAMES, "encoder": ENCODER, "trained_on": {"images": 12}, **arguments})
    probe.load_state_dict(
        {
            "weight": torch.randn(3, 6, generator=generator),
            "bias": torch.randn(3, generator=generator),
            "mean": 0.1 * torch.randn(6, generator=generator),
            "std": torch.rand(6, generator=generator) + 0.1,
        }
    )
    return probe


def test_training_offers_all_of_it() -> None:
    for name in ("LinearProbe", "PseudoLabels", "few_shot_mask", "pseudo_label", "train_linear_probe"):
        assert name in training.__all__
    assert training.train_linear_probe is train_linear_probe


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_are_those_of_the_formula(dtype: torch.dtype) -> None:
    probe = random_probe()
    features = (5 * torch.randn(7, 6, generator=torch.Generator().manual_seed(1))).to(dtype)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    standardized = (unit - probe.mean.double()) / probe.std.double()
    expected = standardized @ probe.weight.double().T + probe.bias.double()
    logits = probe(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probe(4 * features), logits, rtol=1e-5, atol=1e-5)


def test_a_surrounding_autocast_does_not_round() -> None:
    probe, features = random_probe(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    expected = probe(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(probe(features), expected)


def test_gradients_reach_features_and_weights() -> None:
    probe, features = random_probe(), torch.randn(5, 6).requires_grad_()
    probe(features).logsumexp(dim=1).sum().backward()
    assert features.grad is not None and bool(features.grad.any())
    assert probe.weight.grad is not None and probe.bias.grad is not None
    assert {name for name, _ in probe.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize("shape", [(3, 5), (6,), (2, 3, 6)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must have shape (images, 6) for this probe, got {shape}.")):
        random_probe()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "`dim` must be at least 1, got 0."),
        ((6, 1), ValueError, "`num_classes` must be at least 2, got 1."),
        ((6, 2.0), TypeError, "`num_classes` must be a whole number"),
        ((6, 3, ["cat", "dog"]), ValueError, "`labels` must be one name for each of 3 classes, got 2."),
        ((6, 3, ["cat", "dog", "cat"]), ValueError, "`labels` has 'cat' twice"),
        ((6, 3, ["cat", "dog", 3]), TypeError, "`labels` must be a list of strings"),
        ((6, 3, "cat"), TypeError, "`labels` must be a list of strings"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LinearProbe(*arguments)


def test_saved_and_loaded(tmp_path: Path) -> None:
    probe = random_probe()
    # What is changed later is saved as it is then.
    probe.trained_on = {"images": 30, "labelled": False}
    probe.labels = ["Katze", "Hund", "猫"]
    probe.save_pretrained(tmp_path / "probe")
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = LinearProbe.from_pretrained(tmp_path / "probe")
    assert loaded.to_config() == probe.to_config()
    assert loaded.labels == ["Katze", "Hund", "猫"]
    assert loaded.trained_on == {"images": 30, "labelled": False}
    assert not loaded.training
    for name, tensor in probe.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    features = torch.randn(9, 6)
    assert torch.equal(loaded(features), probe(features))
    # Again to the same place
    loaded.labels = None
    loaded.save_pretrained(tmp_path / "probe")
    assert LinearProbe.from_pretrained(str(tmp_path / "probe")).labels is None


def test_card_tells_what_the_probe_is(tmp_path: Path) -> None:
    random_probe().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "clipn_hf"
    assert card.data.base_model == "org/model"
    assert {"linear-probe", "ood-detection"} <= {*card.data.tags}
    assert 'OODDetector.from_probe("org/model", probe)' in card.text
    assert "`cat`, `dog`, `red | bird`" in card.text
    assert "| Encoder | `org/model`, SHA-256 of what embeds images `0000000000000000…` |" in card.text
    assert "| Training images | 12 |" in card.text


def test_card_of_a_training(tmp_path: Path) -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    pair = {"validation_features": features[20:], "validation_labels": torch.arange(20) % 2}
    probe = train_linear_probe(features[:20], torch.arange(20) % 2, epochs=2, device="cpu", progress=False, **pair)
    assert probe.trained_on is not None
    told = {"min_confidence": 0.5, "templates": ["a {}."], "kept": 20, "of": 30}
    probe.trained_on |= {"accuracy": 0.85, "loss": 0.20478189086914061, "pseudo_labels": told}
    model = tmp_path / "folder" / "clip"
    model.mkdir(parents=True)
    probe.encoder = {"id": str(model), "sha256": "12" * 32}
    probe.save_pretrained(tmp_path / "probe")
    card = ModelCard.load(tmp_path / "probe" / "README.md")
    rows = dict(
        line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| E") or "On" in line
    )
    assert rows["Encoder"] == "`clip`, SHA-256 of what embeds images `1212121212121212…`"
    assert rows["On the training images"] == "accuracy 85.0%, loss 0.2048"
    assert rows["On the validation images"].startswith("accuracy ")
    date = probe.trained_on["date"]
    assert f"| Training images | 20, with labels, {date}, SHA-256 `{probe.trained_on['sha256'][:16]}…` |" in card.text
    assert "| Pseudo labels | `min_confidence` = 0.5, `templates` = ['a {}.'], `kept` = 20, `of` = 30 |" in card.text
    assert "| Settings | `epochs` = 2, `batch_size` = 256, `learning_rate` = 0.001," in card.text
    # A folder is no id.
    assert str(tmp_path) not in card.content
    assert card.data.base_model is None
    assert 'OODDetector.from_probe("path/to/the/model", probe)' in card.text


@pytest.mark.parametrize(
    ("source", "finetuning", "base", "model", "row"),
    [
        ("clipn-tiny", None, None, "None", "`clipn-tiny`, embedded in clipn-hf"),
        # Without an owner it is a folder, which need not be there any more.
        ("tuned", None, None, '"path/to/the/model"', "`tuned`"),
        ("tuned", {"base": "org/clip"}, "org/clip", '"path/to/the/folder/above"', "`tuned`, in the folder above"),
        ("tuned", {"base": "/models/me/clip"}, None, '"path/to/the/folder/above"', "`tuned`, in the folder above"),
        ("org/tuned", {"base": "org/clip"}, "org/tuned", '"org/tuned"', "`org/tuned`"),
    ],
)
def test_card_names_the_model_by_what_loads_it(
    tmp_path: Path, source: str, finetuning: dict[str, str] | None, base: str | None, model: str, row: str
) -> None:
    probe = random_probe()
    probe.encoder = {"id": source}
    probe.trained_on = {"images": 12} | ({} if finetuning is None else {"finetuning": finetuning})
    probe.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == base
    assert f"OODDetector.from_probe({model}, probe)" in card.text
    assert f"| Encoder | {row} |" in card.text
    assert "/models/me" not in card.content


def test_folder_that_is_called_as_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clipn-tiny").mkdir()
    probe = random_probe()
    probe.encoder = {"id": "clipn-tiny"}
    probe.save_pretrained(tmp_path / "probe")
    assert 'from_probe("path/to/the/model", probe)' in (tmp_path / "probe" / "README.md").read_text()


@pytest.mark.parametrize("name", ["probes/of/mine", "/nowhere/probe", "./probe", "~/probe", Path("mine/of/probes")])
def test_a_folder_that_is_not_there_is_not_asked_for(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> Any:
        raise AssertionError("The Hub is asked.")

    for module in ("clipn_hf.probing.linear_probe", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", ask)
    with pytest.raises(FileNotFoundError, match=f"^There is no folder {re.escape(str(name))}; name one that"):
        LinearProbe.from_pretrained(name)


def test_a_folder_beside_others_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probes").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="^There is no folder probes/mine; name one"):
        LinearProbe.from_pretrained("probes/mine")


def test_what_is_no_features_is_refused() -> None:
    probe = random_probe()
    with pytest.raises(TypeError, match="`features` must be a torch.Tensor"):
        probe([[0.0] * 6])
    with pytest.raises(ValueError, match="`features` has NaN or infinite values in 1 of 2 rows"):
        probe(torch.tensor([[1.0] * 6, [float("nan")] * 6]))
    # Numbers of numpy are kept as those of Python, which JSON knows.
    assert json.dumps(LinearProbe(np.int64(6), np.int64(3)).to_config())  # type: ignore[arg-type]


def test_published(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {}

    class Repo:
        repo_id = "org/probe"

    def upload(self: HfApi, *, folder_path: Path, repo_id: str, **arguments: Any) -> str:
        published.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return f"https://example.org/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repo())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    probe = random_probe()
    probe.labels = ["a", "b", "c"]
    assert probe.push_to_hub("org/probe") == "https://example.org/org/probe"
    assert published.keys() == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(published["config.json"])["labels"] == ["a", "b", "c"]


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": None}, "tensors in which std is missing or not known"),
        ({"scale": torch.ones(1)}, "tensors in which scale is missing or not known"),
        ({"weight": torch.zeros(3, 5)}, r"has `weight` of shape \(3, 5\) and torch.float32"),
        ({"bias": torch.zeros(3).half()}, r"has `bias` of shape \(3,\) and torch.float16"),
        ({"weight": torch.full((3, 6), float("nan"))}, "has NaN or infinite values in `weight`"),
        ({"mean": torch.full((6,), float("inf"))}, "has NaN or infinite values in `mean`"),
        ({"std": torch.zeros(6)}, "values in `std` that are not positive"),
    ],
)
def test_damaged_tensors_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    random_probe().save_pretrained(tmp_path)
    change_tensors(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^The probe {re.escape(str(tmp_path))} .*{message}"):
        LinearProbe.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json of the probe .* is not what clipn-hf writes there"),
        ("[]", "config.json of the probe .* is not what clipn-hf writes there"),
        ('{"dim": 6}', "has no config.json with num_classes"),
        ('{"dim": 6, "num_classes": 3, "labels": ["a"]}', "damaged config.json .*one name for each of 3 classes"),
        ('{"dim": "6", "num_classes": 3}', "damaged config.json .*`dim` must be a whole number"),
        (None, "has no config.json with dim and num_classes"),
    ],
)
def test_damaged_configuration_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    random_probe().save_pretrained(tmp_path)
    if content is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        LinearProbe.from_pretrained(tmp_path)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    random_probe().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="has a damaged model.safetensors"):
        LinearProbe.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model.safetensors"):
        LinearProbe.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="^There is no folder org/absent, and no probe of that name on the Hub can be"):
        LinearProbe.from_pretrained("org/absent")


def test_a_damaged_probe_is_not_saved(tmp_path: Path) -> None:
    probe = random_probe()
    probe.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="The probe has NaN or infinite values in `bias`"):
        probe.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    probe.bias.data[1] = 0.0
    probe.labels = ["only one"]
    with pytest.raises(ValueError, match="one name for each of 3 classes"):
        probe.save_pretrained(tmp_path)
