# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What every test shares: no network, one thread, a private Hugging Face home, and tiny random models."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

# Read by the libraries when they are imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
if "PYTEST_XDIST_WORKER" not in os.environ:
    # xdist workers inherit the folder of the process that started them, which removes it when it exits.
    _hf_home = tempfile.TemporaryDirectory(prefix="clipn-hf-tests-")
    os.environ["HF_HOME"] = _hf_home.name

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import logging

if TYPE_CHECKING:
    from clipn_hf import CLIPNModel

torch.set_num_threads(1)
# Slow machines are no failure; continuous integration draws the same examples every time.
settings.register_profile("clipn-hf", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("clipn-hf")

ROOT = Path(__file__).parents[1]
WORDS = ["a", "an", "the", "of", "no", "not", "with", "without", "photo", "picture", "drawing", "cat", "dog", "car"]
IMAGE_SIZE = 32
# In the order in which the command finds them.
IMAGE_NAMES = ["0.png", "1 two.jpg", "deep/5.webp", "z-猫.png", "Ärger.png"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the repository; tests that need it skip where it is absent."""
    folder = (ROOT / ".." / "shared").resolve()
    if not folder.is_dir():
        pytest.skip("reference data not found: no folder 'shared' beside the repository")
    return folder


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    """What is said once in a process is said once in each test."""
    logging.warning_once.cache_clear()


class Run(NamedTuple):
    """What a run of the command `clipn-hf` left: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Command(Protocol):
    """Runs the command `clipn-hf` in this process."""

    def __call__(self, *arguments: object) -> Run: ...


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in a terminal so wide that nothing is folded."""
    from clipn_hf import cli

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Run:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Run(exit_.value.code or 0, captured.out, captured.err)  # type: ignore[arg-type]

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images that differ, one of them in a folder inside."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(IMAGE_NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64)).save(folder / name)
    return folder


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    """Forty-eight images that differ, a half of them in each of two folders called by labels."""
    for seed in range(48):
        folder = tmp_path / "many" / ("cat", "dog")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(100 + seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{seed:02}.png")
    return tmp_path / "many"


def build_tokenizer() -> CLIPTokenizer:
    """CLIP tokenizer of about 600 tokens: all bytes, and merges that make each of `WORDS` one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [f"{symbol}</w>" for symbol in alphabet]
    merges = []
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            pair, symbols = symbols[:2], ["".join(symbols[:2]), *symbols[2:]]
            if symbols[0] not in tokens:
                tokens.append(symbols[0])
                merges.append(tuple(pair))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=77
    )


def build_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """Processor of the tiny CLIP: resizes the short side to 32 pixels and crops the centre."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return CLIPProcessor(image_processor, tokenizer)


def build_clip(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """Random CLIP in evaluation mode: image 32, patch 8, width 32, two layers, as many tokens as `tokenizer`."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config).eval()


def build_clipn(clip: CLIPModel, seed: int = 0, **config_overrides: object) -> CLIPNModel:
    """CLIPN around `clip` in evaluation mode, its "no" parameters moved away from their copies so that they matter."""
    from clipn_hf import CLIPNModel

    model = CLIPNModel.from_clip(clip, **config_overrides).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "no_" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def tiny_tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture
def tiny_processor(tiny_tokenizer: CLIPTokenizer) -> CLIPProcessor:
    return build_processor(tiny_tokenizer)


@pytest.fixture
def tiny_clip(tiny_tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh random CLIP for each test, the same weights every time."""
    return build_clip(tiny_tokenizer)


@pytest.fixture
def tiny_clipn(tiny_clip: CLIPModel) -> CLIPNModel:
    """A fresh CLIPN with learnable prompts for each test, the same weights every time."""
    return build_clipn(tiny_clip)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved tiny CLIP: model and processor. Read only: the folder is shared by all tests of a process."""
    folder = tmp_path_factory.mktemp("clip-tiny-random")
    tokenizer = build_tokenizer()
    build_clip(tokenizer).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clipn_folder(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """Saved tiny CLIPN: model and processor. Read only: the folder is shared by all tests of a process."""
    from clipn_hf import CLIPNProcessor

    folder = tmp_path_factory.mktemp("clipn-tiny-random")
    processor = CLIPProcessor.from_pretrained(clip_folder)
    build_clipn(CLIPModel.from_pretrained(clip_folder)).save_pretrained(folder)
    CLIPNProcessor(processor.image_processor, processor.tokenizer).save_pretrained(folder)
    return folder
