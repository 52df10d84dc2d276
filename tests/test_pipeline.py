# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline: every input kind and checkpoint kind, the same answers as the detector."""

import importlib
import io
import json
import logging
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import CLIPModel, CLIPProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import clipn_hf
from clipn_hf import CLIPNModel, IncompleteCheckpointError, OODDetector, OODPipeline, pipeline
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE
from clipn_hf.images import ImageError
from clipn_hf.methods import METHODS

LABELS = ["cat", "dog", "red bird", "tree"]
# Others belong to a detector that was fitted and saved, or to other models.
ZERO_SHOT = [
    name for name, method in METHODS.items() if method.fit is None and not method.needs & {"sigmoid", "unknown"}
]
FEW = {
    "corpus": ["car", "house", "moon", "piano", "river", "shoe"],
    "fraction": 0.6,
    "filters": (),
    "max_similarity": None,
    "use_cache": False,
}


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [noise(seed) for seed in range(5)]


@pytest.fixture
def pipe(tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor) -> OODPipeline:
    return OODPipeline(model=tiny_clipn, processor=tiny_processor, task="ood-detection", device="cpu")


def assert_same(found: Any, expected: Any) -> None:
    """Equal records, their numbers to the documented tolerance."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for key in ("verdict", "is_ood", "threshold", "promise", "method", "label"):
            assert one[key] == other[key]
        for key in ("ood_score", "score"):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6)
        assert [entry["label"] for entry in one["labels"]] == [entry["label"] for entry in other["labels"]]


def test_import_registers_the_task() -> None:
    assert pipeline is transformers.pipeline
    assert clipn_hf.pipeline is transformers.pipeline
    _, task, _ = PIPELINE_REGISTRY.check_task("ood-detection")
    assert task["impl"] is OODPipeline
    assert task["default"] == {"model": (EMBEDDED_CHECKPOINT, None)}
    # The function, not the module of the same name.
    importlib.import_module("clipn_hf.pipeline")
    assert clipn_hf.pipeline is transformers.pipeline
    assert set(clipn_hf.__all__) <= set(dir(clipn_hf))
    with pytest.raises(AttributeError, match="has no attribute 'pipelines'"):
        clipn_hf.pipelines  # noqa: B018


@pytest.mark.parametrize("method", ZERO_SHOT)
def test_says_what_the_detector_says(pipe: OODPipeline, method: str) -> None:
    needed = {"negatives": FEW} if "negatives" in METHODS[method].needs else {}
    for options in (needed, {**needed, "threshold": 0.4}, {**needed, "templates": ["the {}", "a {}"]}):
        expected = OODDetector(pipe.encoder, LABELS, method, **options)(IMAGES)
        assert_same(pipe(IMAGES, candidate_labels=LABELS, method=method, **options), expected)


def test_default_method_is_atd(pipe: OODPipeline) -> None:
    result = pipe(IMAGES[0], LABELS)
    assert result["method"] == "atd"
    assert result["is_ood"] in (True, False)
    assert result["threshold"] is None


def test_one_image_gives_a_record_many_a_list_and_a_stream_an_iterator(pipe: OODPipeline, tmp_path: Path) -> None:
    files = [png(image) for image in IMAGES]
    paths = [tmp_path / f"{number}.png" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    expected = pipe(IMAGES, candidate_labels=LABELS)
    assert isinstance(expected, list)
    for single in (IMAGES[0], paths[0], str(paths[0]), files[0], bytearray(files[0]), memoryview(files[0])):
        assert_same([pipe(single, candidate_labels=LABELS)], expected[:1])
    assert_same([pipe(io.BytesIO(files[0]), candidate_labels=LABELS)], expected[:1])
    for single in ({"image": IMAGES[0], "label": 3}, {"image": {"bytes": files[0], "path": None}}):
        assert_same([pipe(single, candidate_labels=LABELS)], expected[:1])
    for many in (paths, files, tuple(IMAGES), [paths[0], str(paths[1]), files[2], *IMAGES[3:]]):
        results = pipe(many, candidate_labels=LABELS, batch_size=2)
        assert isinstance(results, list)
        assert_same(results, expected)
    encoded = [{"bytes": data, "path": None} for data in files]
    features = datasets.Features({"picture": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"picture": encoded}, features=features)
    for many in (dataset["picture"], dataset.rename_column("picture", "image")[:]):
        results = pipe(many, candidate_labels=LABELS, batch_size=2)
        assert isinstance(results, list)
        assert_same(results, expected)
    streams: list[Any] = [
        (image for image in IMAGES),
        iter(files),
        map(str, paths),
        KeyDataset(dataset, "picture"),
        dataset,
        dataset.to_iterable_dataset(),
    ]
    for stream in streams:
        results = pipe(stream, candidate_labels=LABELS, batch_size=2)
        assert not isinstance(results, list)
        assert_same(results, expected)
    assert pipe([], candidate_labels=LABELS) == []
    assert list(pipe(iter([]), candidate_labels=LABELS)) == []


def test_streams_are_read_as_they_go(pipe: OODPipeline) -> None:
    read = []

    def source() -> Iterator[Image.Image]:
        for number, image in enumerate(IMAGES * 4):
            read.append(number)
            yield image

    results = iter(pipe(source(), candidate_labels=LABELS, batch_size=2))
    assert len(read) <= 1
    next(results)
    assert len(read) <= 4
    assert len(list(results)) == 19


def test_workers_give_the_same(pipe: OODPipeline, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        image.save(path)
    expected = pipe(IMAGES, candidate_labels=LABELS)
    assert_same(pipe(paths, candidate_labels=LABELS, batch_size=2, num_workers=2), expected)


@pytest.mark.parametrize("method", ZERO_SHOT)
def test_batch_size_and_order_do_not_matter(pipe: OODPipeline, method: str) -> None:
    expected = pipe(IMAGES, candidate_labels=LABELS, method=method)
    for batch_size in (2, 5, 8):
        assert_same(pipe(IMAGES, candidate_labels=LABELS, method=method, batch_size=batch_size), expected)
    assert_same(pipe(IMAGES[::-1], candidate_labels=LABELS, method=method, batch_size=3), expected[::-1])


def test_labels_are_encoded_once_and_forward_sees_images_alone(
    pipe: OODPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def record(name: str) -> None:
        original = getattr(pipe.model, name)
        monkeypatch.setattr(pipe.model, name, lambda **inputs: seen.append(name) or original(**inputs))

    record("get_text_features")
    record("get_no_text_features")
    forward, batches = pipe._forward, []
    monkeypatch.setattr(pipe, "_forward", lambda inputs, **own: batches.append(inputs) or forward(inputs, **own))
    pipe(IMAGES, candidate_labels=LABELS, batch_size=2)
    pipe(IMAGES, candidate_labels=LABELS, method="mcm", batch_size=2)
    pipe(IMAGES, candidate_labels=LABELS, method="ctw", threshold=0.3, batch_size=2)
    assert seen == ["get_text_features", "get_no_text_features"]
    assert [batch.keys() for batch in batches] == [{"pixel_values"}] * 9
    assert [len(batch["pixel_values"]) for batch in batches] == [2, 2, 1] * 3
    pipe(IMAGES, candidate_labels=LABELS[:2], method="mcm")
    assert seen == ["get_text_features", "get_no_text_features", "get_text_features"]


def test_options_can_be_given_once_for_all_calls(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> None:
    pipe = pipeline(
        "ood-detection",
        model=tiny_clip,
        processor=tiny_processor,
        device="cpu",
        candidate_labels=LABELS,
        method="mcm",
        threshold=0.7,
        top_k=1,
        temperature=0.5,
        batch_size=2,
    )
    expected = OODDetector(pipe.encoder, LABELS, "mcm", threshold=0.7, temperature=0.5)(IMAGES, top_k=1)
    assert_same(pipe(IMAGES), expected)
    assert len(pipe(IMAGES[0])["labels"]) == 1
    other = OODDetector(pipe.encoder, LABELS[:2], "mcm", threshold=0.2, temperature=0.5)(IMAGES, top_k=1)
    assert_same(pipe(IMAGES, candidate_labels=LABELS[:2], threshold=0.2), other)
    assert_same(pipe(IMAGES), expected)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.fit is not None])
def test_methods_that_are_fitted_need_a_detector(
    pipe: OODPipeline, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        ValueError, match=rf"Method {method} must be fitted before it judges; call `OODDetector\.fit\("
    ):
        pipe(IMAGES, candidate_labels=LABELS, method=method)
    assert not caplog.records


def test_five_labels_are_listed_unless_told_otherwise(pipe: OODPipeline) -> None:
    labels = [f"{label} {number}" for label in LABELS for number in range(2)]
    assert len(pipe(IMAGES[0], labels)["labels"]) == 5
    assert len(pipe(IMAGES[0], labels, top_k=7)["labels"]) == 7
    assert len(pipe(IMAGES[0], labels, top_k=None)["labels"]) == 8
    assert len(pipe(IMAGES[0], LABELS)["labels"]) == 4


def test_misspelt_options_are_found_when_the_pipeline_is_made(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    for options, message in (
        (
            {"treshold": 0.5},
            r"^OODPipeline does not know `treshold`, did you mean `threshold`\? Known are: `candidate_",
        ),
        ({"hypothesis_template": "a {}"}, r"did you mean `templates`\?"),
    ):
        with pytest.raises(TypeError, match=message):
            pipeline("ood-detection", model=tiny_clipn, processor=tiny_processor, device="cpu", **options)


def test_tokenizer_and_image_processor_are_enough(
    pipe: OODPipeline, tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor
) -> None:
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    other = pipeline("ood-detection", model=tiny_clipn, device="cpu", **parts)
    assert_same(other(IMAGES, candidate_labels=LABELS), pipe(IMAGES, candidate_labels=LABELS))
    with pytest.raises(TypeError, match="pass processor="):
        pipeline("ood-detection", model=tiny_clipn, device="cpu")


def test_missing_verdict_is_explained_once_per_call(pipe: OODPipeline, caplog: pytest.LogCaptureFixture) -> None:
    assert [result["is_ood"] for result in pipe(IMAGES, candidate_labels=LABELS, method="energy")] == [None] * 5
    assert [record.getMessage()[:14] for record in caplog.records] == ["`is_ood` is No"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "`candidate_labels` is missing; name"),
        ({"candidate_labels": []}, ValueError, "^`candidate_labels` is empty"),
        ({"candidate_labels": ["cat", "cat"]}, ValueError, "^`candidate_labels` contains 'cat' twice"),
        ({"candidate_labels": "cat, dog"}, TypeError, "^`candidate_labels` must be a list of strings"),
        ({"candidate_labels": ["cat", None]}, TypeError, r"^`candidate_labels\[1\]` must be a string, got NoneType"),
        ({"candidate_labels": ["cat"], "method": "msp"}, ValueError, "needs at least 2 labels"),
        ({"candidate_labels": LABELS, "method": "nonsense"}, ValueError, "`method` must be one of .* got 'nonsense'"),
        ({"candidate_labels": LABELS, "threshold": float("nan")}, ValueError, "`threshold` must be finite"),
        ({"candidate_labels": LABELS, "templates": ["photo"]}, ValueError, "must contain `{}`"),
        ({"candidate_labels": LABELS, "top_k": 0}, ValueError, "`top_k` must be a positive integer"),
        ({"candidate_labels": LABELS, "batch_size": 0}, ValueError, "`batch_size` must be a positive integer"),
        ({"candidate_labels": LABELS, "treshold": 0.5}, TypeError, r"`treshold`, did you mean `threshold`\?"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a {}"}, TypeError, r"did you mean `templates`\?"),
        ({"candidate_labels": LABELS, "device": "cpu"}, TypeError, "does not know `device`.* `batch_size`"),
        ({"candidate_label": LABELS}, TypeError, r"did you mean `candidate_labels`\?"),
        ({"candidate_labels": LABELS, "temperature": 2.0}, TypeError, "Method atd does not know `temperature`"),
    ],
)
def test_bad_options(pipe: OODPipeline, options: dict[str, Any], error: type[Exception], message: str) -> None:
    for images in (IMAGES[0], IMAGES, iter(IMAGES)):
        with pytest.raises(error, match=message):
            pipe(images, **options)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_broken_image_is_named(pipe: OODPipeline, tmp_path: Path, batch_size: int) -> None:
    missing = tmp_path / "missing.png"
    with pytest.raises(ImageError, match=r"image 2 \(.*missing\.png\): there is no such file"):
        pipe([*IMAGES[:2], missing], candidate_labels=LABELS, batch_size=batch_size)
    with pytest.raises(ImageError, match=r"image 1 \(the 5 bytes given\)"):
        list(pipe(iter([IMAGES[0], b"magic"]), candidate_labels=LABELS, batch_size=batch_size))
    with pytest.raises(ImageError, match=r"Cannot read .*missing\.png"):
        pipe(missing, candidate_labels=LABELS)
    rows = [{"bytes": data, "path": None} for data in (png(IMAGES[0]), b"magic")]
    dataset = datasets.Dataset.from_dict({"picture": rows}, features=datasets.Features({"picture": datasets.Image()}))
    for many in (dataset, dataset["picture"], KeyDataset(dataset, "picture")):
        with pytest.raises(ImageError, match="Cannot read image 1"):
            list(pipe(many, candidate_labels=LABELS, batch_size=batch_size))


def test_plain_clip(clip_folder: Path) -> None:
    pipe = pipeline("ood-detection", model=str(clip_folder), device="cpu")
    assert type(pipe.model) is CLIPModel
    with pytest.raises(ValueError, match=r"Method atd needs a CLIPN model .* got CLIPModel; use a trained CLIPN"):
        pipe(IMAGES, candidate_labels=LABELS)
    for method in ("mcm", "msp", "max_logit", "energy"):
        assert len(pipe(IMAGES, candidate_labels=LABELS, method=method)) == 5


@pytest.mark.parametrize(("folder", "method"), [("clip_folder", "mcm"), ("clipn_folder", "atd")])
def test_save_and_load_again(folder: str, method: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipe = pipeline("ood-detection", model=str(request.getfixturevalue(folder)), device="cpu")
    expected = pipe(IMAGES, candidate_labels=LABELS, method=method)
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "custom_pipelines" not in config
    assert "auto_map" not in config
    assert not list(tmp_path.glob("*.py"))
    again = pipeline("ood-detection", model=str(tmp_path), device="cpu")
    assert type(again.model) is type(pipe.model)
    assert type(again.processor) is type(pipe.processor)
    assert again(IMAGES, candidate_labels=LABELS, method=method) == expected


class FakeHub:
    """Stands in for `HfApi`: keeps what is committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits: list[dict[str, Any]] = []
        self.repos: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.repos.append((repo_id, options))
        return types.SimpleNamespace(repo_id=f"someone/{repo_id}")

    def create_commit(self, operations: list[Any], **options: Any) -> str:
        for operation in operations:
            (self.folder / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())
        self.commits.append(options)
        return "https://example.org/commit"


@pytest.mark.parametrize("by", ["save_pretrained", "push_to_hub"])
def test_publishing_takes_one_commit(
    clipn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    hub = FakeHub(tmp_path / "hub")
    hub.folder.mkdir()
    monkeypatch.setattr(transformers.utils.hub, "hf_api", lambda *_, **__: hub)
    card = ModelCard("---\nlibrary_name: transformers\n---\n")
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *_, **__: card)
    pipe = pipeline("ood-detection", model=str(clipn_folder), device="cpu")
    if by == "push_to_hub":
        pipe.push_to_hub("detector", private=True, commit_message="Here it is")
    else:
        saved = tmp_path / "detector"
        pipe.save_pretrained(saved, push_to_hub=True, private=True, commit_message="Here it is", max_shard_size="1MB")
        assert (saved / "model.safetensors").is_file()
        pipe.save_pretrained(saved, push_to_hub=True, repo_id="other")
        assert [name for name, _ in hub.repos] == ["detector", "other"]
        assert hub.commits.pop()["repo_id"] == "someone/other"
    (commit,) = hub.commits
    assert commit["repo_id"] == "someone/detector"
    assert commit["commit_message"] == "Here it is"
    assert hub.repos[0][1]["private"] is True
    assert not list(hub.folder.glob("*.py"))
    again = pipeline("ood-detection", model=str(hub.folder), device="cpu")
    assert type(again.processor) is type(pipe.processor)
    assert again(IMAGES, candidate_labels=LABELS) == pipe(IMAGES, candidate_labels=LABELS)


@pytest.mark.parametrize("dtype", ["auto", torch.float16])
def test_computes_in_float32_on_a_cpu(clipn_folder: Path, tmp_path: Path, dtype: Any) -> None:
    model = CLIPNModel.from_pretrained(clipn_folder, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    CLIPProcessor.from_pretrained(clipn_folder).save_pretrained(tmp_path)
    by_name = pipeline("ood-detection", model=str(tmp_path), device="cpu", dtype=dtype)
    by_object = pipeline("ood-detection", model=model, processor=by_name.processor, device="cpu")
    for pipe in (by_name, by_object):
        assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}
    assert_same(by_name(IMAGES, candidate_labels=LABELS), by_object(IMAGES, candidate_labels=LABELS))


def test_missing_weights_are_an_error(clip_folder: Path, clipn_folder: Path, tmp_path: Path) -> None:
    for source, part, advice in ((clip_folder, "visual_projection", "Download"), (clipn_folder, "no_", "from_clip")):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        weights = {n: w for n, w in load_file(folder / "model.safetensors").items() if part not in n}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(IncompleteCheckpointError, match=f"lacks weights of .*{part}.*{advice}"):
            pipeline("ood-detection", model=str(folder), device="cpu")


def test_damaged_weights_are_named(pipe: OODPipeline) -> None:
    with torch.no_grad():
        pipe.model.visual_projection.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite: visual_projection\.weight"):
        pipe(IMAGES[0], candidate_labels=LABELS)


def test_adapter_on_clipn(clipn_folder: Path, tmp_path: Path) -> None:
    base = pipeline("ood-detection", model=str(clipn_folder), device="cpu")
    expected = base(IMAGES, candidate_labels=LABELS)
    model = CLIPNModel.from_pretrained(clipn_folder)
    attention = r"no_text_model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj"
    config = LoraConfig(r=2, target_modules=attention, init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path)
    by_object = pipeline("ood-detection", model=adapted, processor=base.processor, device="cpu")
    truth = by_object(IMAGES, candidate_labels=LABELS)
    assert truth[0]["ood_score"] != pytest.approx(expected[0]["ood_score"], rel=1e-3)
    assert_same(pipeline("ood-detection", model=str(tmp_path), device="cpu")(IMAGES, candidate_labels=LABELS), truth)
    assert_same(OODDetector(tmp_path, LABELS, device="cpu")(IMAGES), truth)
    # What the adapter does not touch stays as it was.
    assert truth[0]["score"] == pytest.approx(expected[0]["score"], rel=1e-5)


def test_adapter_on_an_incomplete_base_is_an_error(clipn_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clipn_folder, tmp_path / "base")
    adapted = get_peft_model(CLIPNModel.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpointError, match="lacks weights of CLIPNModel: visual_projection"):
        pipeline("ood-detection", model=str(tmp_path / "adapter"), device="cpu")


def test_without_a_model_the_embedded_one_is_used(clipn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = PIPELINE_REGISTRY.supported_tasks["ood-detection"]
    monkeypatch.setitem(task, "default", {"model": (str(clipn_folder), None)})
    monkeypatch.setattr(sys.modules["clipn_hf.pipeline"], "EMBEDDED_CHECKPOINT", str(clipn_folder))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger = logging.getLogger("transformers.pipelines")
    logger.addHandler(handler)
    try:
        pipe = pipeline("ood-detection", device="cpu")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == [EMBEDDED_NOTICE]
    # Nothing else is touched, whatever it mentions.
    for message in ("Device set to use cpu", f"{clipn_folder} could not be loaded", "No model was supplied, so what?"):
        record = logging.LogRecord("transformers.pipelines", logging.WARNING, "", 0, message, (), None)
        assert logging.getLogger("transformers.pipelines").filter(record)
        assert record.getMessage() == message
    assert "\n" not in EMBEDDED_NOTICE
    assert pipe(IMAGES[0], candidate_labels=LABELS)["method"] == "atd"


@pytest.mark.parametrize(("explain", "path"), [(True, "surgery"), ("value", "value"), ("clip", "clip")])
def test_explained_results_have_maps_and_a_picture(pipe: OODPipeline, explain: bool | str, path: str) -> None:
    options = {"candidate_labels": LABELS, "top_k": 2, "negatives": ["car", "moon"], "top_negatives": 1}
    plain = pipe(IMAGES, **options)
    found = pipe(IMAGES, explain=explain, batch_size=2, **options)
    expected = pipe_detector(pipe, options).explain(IMAGES, path, top_k=2, top_negatives=1)
    assert isinstance(found, list)
    for result, one, other in zip(found, expected, plain, strict=True):
        maps, picture = result.pop("maps"), result.pop("overlay")
        assert_same([result], [other])
        assert isinstance(picture, Image.Image)
        assert [*maps["labels"]] == [*maps["no"]] == [entry["label"] for entry in result["labels"]]
        assert [*maps["negatives"]] == [entry["label"] for entry in result["negatives"]]
        for kind, own in one.maps().items():
            for text, map_ in own.items():
                assert maps[kind][text].dtype == torch.float32
                torch.testing.assert_close(maps[kind][text], map_, rtol=0, atol=1e-5)


def pipe_detector(pipe: OODPipeline, options: dict[str, Any]) -> OODDetector:
    return OODDetector(pipe.encoder, options["candidate_labels"], negatives=options["negatives"])


def test_explaining_streams_single_images_and_by_default(
    tiny_clipn: CLIPNModel, tiny_processor: CLIPProcessor, pipe: OODPipeline
) -> None:
    always = OODPipeline(model=tiny_clipn, processor=tiny_processor, task="ood-detection", device="cpu", explain=True)
    assert always(IMAGES[0], candidate_labels=LABELS)["maps"]["labels"].keys() == {*LABELS}
    assert all("overlay" in result for result in always(iter(IMAGES), candidate_labels=LABELS))
    for off in (False, None):
        assert "maps" not in pipe(IMAGES[0], candidate_labels=LABELS, explain=off)
    assert "maps" not in always(IMAGES[0], candidate_labels=LABELS, explain=False)
    for wrong in ("last", 1.5, "yes"):
        with pytest.raises(ValueError, match="`explain` must be True, False or the path of the maps, one of"):
            pipe(IMAGES[0], candidate_labels=LABELS, explain=wrong)


def test_user_datasets_of_dictionaries(pipe: OODPipeline) -> None:
    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return len(IMAGES)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": IMAGES[index], "label": index}

    assert_same(pipe(Rows(), candidate_labels=LABELS), pipe(IMAGES, candidate_labels=LABELS))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["auto", torch.float16, torch.bfloat16])
def test_gpu(clipn_folder: Path, dtype: Any) -> None:
    on_cpu = pipeline("ood-detection", model=str(clipn_folder), device="cpu")
    on_gpu = pipeline("ood-detection", model=str(clipn_folder), device="cuda", dtype=dtype)
    assert on_gpu.model.dtype == (torch.float32 if dtype == "auto" else dtype)
    expected = on_cpu(IMAGES, candidate_labels=LABELS, method="ctw")
    found = on_gpu(IMAGES, candidate_labels=LABELS, method="ctw", batch_size=2)
    tolerance = 1e-3 if dtype == "auto" else 0.1
    for one, other in zip(found, expected, strict=True):
        assert one["ood_score"] == pytest.approx(other["ood_score"], abs=tolerance)
