# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Siglip2ImageProcessorPil,
    SiglipConfig,
    SiglipModel,
)

from clipn_hf import DualEncoder
from clipn_hf.evaluation.adversarial import AdversarialImages, adversarial_ood, deal_targets
from clipn_hf.images import ImageError


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    """Blurry pictures that differ."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size) for _ in range(count)]


@pytest.fixture
def encoder(tiny_clip: CLIPModel, tiny_processor: CLIPProcessor) -> DualEncoder:
    return DualEncoder(tiny_clip, tiny_processor)


def embed(encoder: DualEncoder, colours: torch.Tensor) -> torch.Tensor:
    black, white = encoder.pixel_range()
    return encoder.image_embeddings(black + colours * (white - black))


def test_images_approach_their_targets(encoder: DualEncoder) -> None:
    attack = adversarial_ood(pictures(3), pictures(3, seed=1), encoder, steps=15, lr=0.01, smoothness=0)
    assert attack.images.shape == attack.originals.shape == attack.targets.shape == (3, 3, 32, 32)
    assert attack.images.dtype == torch.float32
    assert attack.images.min() >= 0 and attack.images.max() <= 1
    assert attack.similarities.shape == (16, 3)
    assert (attack.similarities[-1] > attack.similarities[0]).all()
    assert attack.target_rows.tolist() == [0, 1, 2]
    # Trace and images are of each other.
    cosines = (embed(encoder, attack.images) * embed(encoder, attack.targets)).sum(dim=1)
    torch.testing.assert_close(attack.similarities[-1], cosines, atol=1e-5, rtol=0)
    torch.testing.assert_close(attack.originals + attack.perturbations, attack.images)
    expected = (attack.images - attack.originals).flatten(1)
    torch.testing.assert_close(attack.l2, expected.norm(dim=1))
    torch.testing.assert_close(attack.linf, expected.abs().amax(dim=1))
    assert len(attack) == 3


def test_originals_and_targets_are_what_the_encoder_sees(encoder: DualEncoder) -> None:
    images, targets = pictures(2), pictures(2, seed=1)
    attack = adversarial_ood(images, targets, encoder, steps=1)
    for colours, files in ((attack.originals, images), (attack.targets, targets)):
        expected = encoder.image_embeddings(encoder.prepare_images(files))
        torch.testing.assert_close(embed(encoder, colours), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("smoothness", [0.0, 50.0])
def test_follows_the_formula(encoder: DualEncoder, smoothness: float) -> None:
    """Against Adam written out, on the objective as the paper has it."""
    attack = adversarial_ood(
        pictures(1), pictures(1, seed=1), encoder, steps=6, lr=0.01, init_std=0.0, smoothness=smoothness
    )
    black, white = encoder.pixel_range()
    original, target = attack.originals[0], attack.targets[0]

    def features(colours: torch.Tensor) -> torch.Tensor:
        outputs = encoder.model.get_image_features((black + colours * (white - black))[None])
        return normalize(outputs.pooler_output[0], dim=0)

    delta = torch.zeros_like(original)
    first, second = torch.zeros_like(original), torch.zeros_like(original)
    for step in range(1, 7):
        delta.requires_grad_()
        down, right = delta[:, 1:, :] - delta[:, :-1, :], delta[:, :, 1:] - delta[:, :, :-1]
        loss = -features((original + delta).clamp(0, 1)) @ features(target)
        loss = loss + smoothness * ((down**2).mean() + (right**2).mean())
        (gradient,) = torch.autograd.grad(loss, delta)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
        delta = delta.detach() - 0.01 * corrected[0] / (corrected[1].sqrt() + 1e-8)
    changed = (original + delta).clamp(0, 1)
    # Where a gradient is next to nothing, rounding decides about the direction of a step.
    assert ((attack.images[0] - changed).abs() < 1e-3).float().mean() > 0.99


def test_neither_batches_nor_neighbours_matter(encoder: DualEncoder) -> None:
    images, targets = pictures(5), pictures(5, seed=1)
    one = adversarial_ood(images, targets, encoder, steps=4, batch_size=5)
    other = adversarial_ood(images[::-1], targets[::-1], encoder, steps=4, batch_size=2)
    torch.testing.assert_close(one.similarities, other.similarities.flip(1), atol=1e-5, rtol=0)
    assert ((one.images - other.images.flip(0)).abs() < 1e-4).float().mean() > 0.99


def test_seeds_draw_the_noise(encoder: DualEncoder) -> None:
    images, targets = pictures(2), pictures(2, seed=1)
    one, again, other = (adversarial_ood(images, targets, encoder, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    noise = adversarial_ood(images, targets, encoder, steps=1, init_std=0.05, lr=1e-9, smoothness=0).perturbations
    inside = noise[noise.abs() > 0]
    assert float(inside.std()) == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(noise[0], noise[1])


def test_similarities_before_are_without_noise(encoder: DualEncoder) -> None:
    attack = adversarial_ood(pictures(3), pictures(3, seed=1), encoder, steps=1, init_std=0.3, batch_size=2)
    cosines = (embed(encoder, attack.originals) * embed(encoder, attack.targets)).sum(dim=1)
    torch.testing.assert_close(attack.original_similarities, cosines, atol=1e-5, rtol=0)
    assert (attack.similarities[0] - cosines).abs().max() > 1e-3
    assert attack.summarize()["start_similarity"] == pytest.approx(float(cosines.mean()), abs=1e-5)


def test_smoothness_makes_smooth(encoder: DualEncoder) -> None:
    images, targets = pictures(2), pictures(2, seed=1)
    smooth, patchy = (
        adversarial_ood(images, targets, encoder, steps=30, lr=0.01, init_std=0, smoothness=each) for each in (5e3, 0)
    )
    rough = [float(one.perturbations.diff(dim=-1).square().mean()) for one in (smooth, patchy)]
    assert 20 * rough[0] < rough[1]
    assert (smooth.name, patchy.name) == ("smooth-5000", "patchy")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_alone(encoder: DualEncoder, mode: Any) -> None:
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    encoder.model.train()
    with mode():
        attack = adversarial_ood(pictures(1), pictures(1, seed=1), encoder, steps=2)
        assert not torch.is_grad_enabled()
    assert encoder.model.training
    assert all(weight.grad is None and weight.requires_grad for weight in encoder.model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.model.state_dict().items())
    assert not attack.images.requires_grad and not attack.similarities.requires_grad


def test_images_survive_being_written(encoder: DualEncoder, tmp_path: Path) -> None:
    attack = adversarial_ood(pictures(3), pictures(3, seed=1), encoder, steps=10, lr=0.01, smoothness=0)
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file, picture in zip(files, attack.to_pil(), strict=True):
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        picture.save(file)
    inputs = encoder.prepare_images(files)
    black, white = encoder.pixel_range()
    colours = (inputs["pixel_values"] - black) / (white - black)
    torch.testing.assert_close(colours, (255 * attack.images).round() / 255, atol=1e-5, rtol=0)
    cosines = (encoder.image_embeddings(inputs) * embed(encoder, attack.targets)).sum(dim=1)
    torch.testing.assert_close(attack.saved_similarities, cosines, atol=1e-5, rtol=0)
    assert (attack.saved_similarities > attack.similarities[0]).all()


def test_a_processor_that_changes_its_own_images(
    tiny_clip: CLIPModel, tiny_processor: CLIPProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    adversarial_ood(pictures(1), pictures(1, seed=1), DualEncoder(tiny_clip, tiny_processor), steps=1)
    assert "resizes or crops" not in caplog.text
    zooming = CLIPImageProcessorPil(size={"shortest_edge": 44}, crop_size={"height": 32, "width": 32})
    encoder = DualEncoder(tiny_clip, CLIPProcessor(zooming, tiny_processor.tokenizer))
    attack = adversarial_ood(pictures(2), pictures(2, seed=1), encoder, steps=3)
    assert "resizes or crops" in caplog.text
    cosines = encoder.image_embeddings(encoder.prepare_images(attack.to_pil())) * embed(encoder, attack.targets)
    torch.testing.assert_close(attack.saved_similarities, cosines.sum(dim=1), atol=1e-5, rtol=0)


def test_with_a_siglip(tiny_processor: CLIPProcessor) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(tiny_processor.tokenizer), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(0)
    encoder = DualEncoder(SiglipModel(config), tiny_processor)
    attack = adversarial_ood(pictures(2), pictures(2, seed=1), encoder, steps=15, lr=0.01, smoothness=0)
    assert (attack.similarities[-1] > attack.similarities[0]).all()
    assert (attack.saved_similarities > attack.similarities[0]).all()


def test_targets_are_dealt_out() -> None:
    assert deal_targets(3, 3, seed=5).tolist() == [0, 1, 2]
    for count, num_targets in ((4, 100), (7, 3), (2, 1)):
        dealt = deal_targets(count, num_targets, seed=0).tolist()
        assert len(dealt) == count and set(dealt) <= set(range(num_targets))
        uses = np.bincount(dealt, minlength=num_targets)
        assert uses.max() - uses.min() <= 1
        assert deal_targets(count, num_targets, seed=0).tolist() == dealt
    assert deal_targets(4, 100, seed=1).tolist() != deal_targets(4, 100, seed=0).tolist()


def test_only_targets_in_use_are_read(encoder: DualEncoder) -> None:
    targets: list[Any] = pictures(6, seed=1)
    row = deal_targets(2, 6, seed=0).tolist()
    unused = next(each for each in range(6) if each not in row)
    targets[unused] = "missing.png"
    attack = adversarial_ood(pictures(2), targets, encoder, steps=1)
    assert attack.target_rows.tolist() == row
    wanted = encoder.image_embeddings(encoder.prepare_images([targets[each] for each in row]))
    torch.testing.assert_close(embed(encoder, attack.targets), wanted, atol=1e-5, rtol=0)
    targets[row[1]] = "missing.png"
    with pytest.raises(ImageError, match=rf"target {row[1]} \(missing.png\)"):
        adversarial_ood(pictures(2), targets, encoder, steps=1)


def test_many_ways_to_give_images(encoder: DualEncoder) -> None:
    images, targets = pictures(2), pictures(2, seed=1)
    expected = adversarial_ood(images, targets, encoder, steps=1).images
    given = adversarial_ood(iter(images), [{"image": target} for target in targets], encoder, steps=1)
    assert torch.equal(given.images, expected)


def test_summary(encoder: DualEncoder) -> None:
    attack = adversarial_ood(pictures(2), pictures(2, seed=1), encoder, steps=2, smoothness=20)
    facts = attack.summarize()
    assert facts["name"] == "smooth-20"
    settings = {"steps": 2, "lr": 1e-3, "init_std": 1e-3, "smoothness": 20.0, "seed": 0}
    assert facts["settings"] == attack.settings == settings
    assert (facts["images"], facts["size"]) == (2, [32, 32])
    assert attack.encoder == encoder.describe_images()
    assert repr(attack).startswith("AdversarialImages('smooth-20', 2 of 32×32, steps=2, encoder=")
    assert "tensor(" not in repr(attack)
    assert facts["saved_similarity"] == pytest.approx(float(attack.saved_similarities.mean()), rel=1e-5)
    assert facts["linf"] == pytest.approx(float(attack.linf.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be a positive integer, got 0."),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
        ({"lr": 0.0}, "`lr` must be finite and above 0, got 0.0."),
        ({"lr": math.inf}, "`lr` must be finite"),
        ({"init_std": -1.0}, "`init_std` must be finite and at least 0"),
        ({"smoothness": math.nan}, "`smoothness` must be finite"),
        ({"smoothness": "much"}, "`smoothness` must be a number, got 'much'."),
        ({"images": []}, "`images` is empty; give at least one image."),
        ({"targets": []}, "`targets` is empty"),
        ({"seed": 2**64}, r"`seed` must be below 2\*\*64, got 18446744073709551616."),
        ({"targets": "cat.jpg"}, r"`targets` must be many images, got one str; give `\[image\]`."),
        ({"targets": "."}, r"`targets` must be many images, got the folder .; list its images by `find_images"),
        ({"targets": Path()}, r"`targets` must be many images, got the folder .; list its images by `find_images"),
        ({"targets": None}, "`targets` must be many images, got None; give a list"),
        ({"images": torch.zeros(2, 3, 32, 32)}, "`images` must be images, got tensors.* give paths, PIL images"),
        ({"images": [torch.zeros(3, 32, 32)]}, "`images` must be images, got tensors.* give paths, PIL images"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, r"got one ndarray; give `list\(images\)`"),
        ({"images": ["missing.png"]}, r"Cannot read image 0 \(missing.png\)"),
        ({"images": [3]}, "Cannot read image 0: An image must be"),
        ({"encoder": "openai/clip"}, "`encoder` must be a DualEncoder, got str"),
    ],
)
def test_what_is_refused(encoder: DualEncoder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        adversarial_ood(**{"images": pictures(1), "targets": pictures(1, seed=1), "encoder": encoder, **arguments})


def test_images_are_not_pulled_to_themselves(encoder: DualEncoder, tmp_path: Path) -> None:
    images = pictures(3)
    # The same picture in another file, and at another place.
    images[1].save(tmp_path / "again.png")
    targets = [tmp_path / "again.png", *pictures(2, seed=1)]
    with pytest.raises(ValueError, match="`images` has 1 of 3 images that are among `targets`, too, so that there is"):
        adversarial_ood(images, targets, encoder, steps=1)
    with pytest.raises(ValueError, match="`images` has 3 of 3 images"):
        adversarial_ood(images, images, encoder, steps=1)


def test_numbers_of_numpy_are_numbers(encoder: DualEncoder) -> None:
    settings: dict[str, Any] = {"steps": np.int64(1), "lr": np.float32(0.5), "smoothness": np.float32(0.1)}
    attack = adversarial_ood(pictures(1), pictures(1, seed=1), encoder, **settings)
    assert [type(value) for value in attack.settings.values()] == [int, float, float, float, int]
    assert attack.name == f"smooth-{float(np.float32(0.1))!r}"


def test_half_precision_is_refused(encoder: DualEncoder) -> None:
    encoder.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"bfloat16, which has too few digits .* `dtype=torch.float32`"):
        adversarial_ood(pictures(1), pictures(1, seed=1), encoder)


def test_patches_are_refused(encoder: DualEncoder, tiny_processor: CLIPProcessor) -> None:
    patches = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    encoder.processor = SimpleNamespace(image_processor=patches, tokenizer=tiny_processor.tokenizer)
    with pytest.raises(ValueError, match=r"cuts images into patches .* use another model\."):
        adversarial_ood(pictures(1), pictures(1, seed=1), encoder)


def test_several_sizes_are_refused(encoder: DualEncoder, tiny_processor: CLIPProcessor) -> None:
    free = CLIPImageProcessorPil(do_center_crop=False, size={"shortest_edge": 32})
    encoder.processor = SimpleNamespace(image_processor=free, tokenizer=tiny_processor.tokenizer)
    sizes = [*pictures(1, size=(64, 32)), *pictures(1, size=(96, 32))]
    with pytest.raises(ValueError, match=r"images of several sizes \(\(32, 64\) and \(32, 96\)\)"):
        adversarial_ood(sizes, pictures(2, seed=1), encoder)
    with pytest.raises(ValueError, match="gives `targets` another size"):
        adversarial_ood(sizes[:1], pictures(1, seed=1, size=(40, 40)), encoder)


def test_the_perturbation_is_what_is_in_effect() -> None:
    """Not what was clamped away."""
    settings = {"steps": 1, "lr": 1.0, "init_std": 0.0, "smoothness": 0.0, "seed": 0}
    images, originals = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.75)
    attack = AdversarialImages(
        images, originals, originals, torch.tensor([0]), torch.ones(1), torch.ones(2, 1), torch.ones(1), settings, {}
    )
    assert attack.linf.tolist() == [0.25]
    assert attack.l2.tolist() == pytest.approx([0.25 * 12**0.5])
