# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-train the small CLIP under `clipn-tiny`: contrastive learning on emoji drawn in many styles.

Every image of one concept matches every caption of that concept, so a batch has several positives per row.
Augmentation imitates what an unseen style changes: scale, stroke, outline, colour and position. Random patches are
dropped in training (FLIP, https://arxiv.org/abs/2212.00794), which halves the cost of a step and regularises.

    python training/emoji/pretrain.py --dataset emoji.parquet --output_dir runs/clip-tiny
"""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

TRAIN_STYLES = (
    "noto",
    "noto-v1",
    "fluent-3d",
    "fluent-color",
    "fluent-flat",
    "fluent-high-contrast",
    "emojione",
    "emojione-monotone",
    "fxemoji",
    "streamline",
)
TEMPLATES = ("{}", "a drawing of a {}.", "an emoji of a {}.", "a picture of a {}.", "an icon of a {}.")
LUMA = (0.299, 0.587, 0.114)


@dataclass
class PretrainArguments(TrainingArguments):
    """Arguments of the pre-training; defaults are the recipe of the published `clipn-tiny`."""

    dataset: str = field(default="emoji.parquet", metadata={"help": "Parquet file of images and captions."})
    validation_styles: str = field(
        default="", metadata={"help": "Comma-separated training styles to hold out for model selection."}
    )
    muon_learning_rate: float = field(
        default=5e-3, metadata={"help": "Peak rate of the transformer blocks' matrices."}
    )
    patch_dropout: float = field(default=0.65, metadata={"help": "Share of patches dropped at the start."})
    last_patch_dropout: float = field(default=0.35, metadata={"help": "Share of patches dropped at the end."})
    vision_width: int = field(default=192, metadata={"help": "Width of the vision tower."})
    vision_layers: int = field(default=6, metadata={"help": "Layers of the vision tower."})
    patch_size: int = field(default=8, metadata={"help": "Patch size in pixels."})
    text_width: int = field(default=128, metadata={"help": "Width of the text tower."})
    text_layers: int = field(default=3, metadata={"help": "Layers of the text tower."})
    vocab_size: int = field(default=4000, metadata={"help": "Size of the learned BPE vocabulary."})
    image_threads: int = field(default=2, metadata={"help": "Torch threads on a CPU."})


def train_tokenizer(texts: list[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary in CLIP's format: bytes, merges, then the start and end tokens."""
    template = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = template.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    known = set(tokens)
    kept = []
    for left, right in merges:
        if len(tokens) >= vocab_size - 2:
            break
        if left + right not in known:
            tokens.append(left + right)
            known.add(left + right)
        kept.append((left, right))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=kept, model_max_length=max_length)


def decode(images: list[dict], size: int = 64) -> torch.Tensor:
    """JPEG records to a uint8 tensor `(N, 3, size, size)`."""
    pixels = np.empty((len(images), 3, size, size), dtype=np.uint8)
    for index, image in enumerate(images):
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            pixels[index] = np.asarray(opened.convert("RGB").resize((size, size))).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def augment(pixels: torch.Tensor, may_flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random style changes on a batch `(B, 3, H, W)` in [0, 1], drawn per image; white is the background."""
    count, device = len(pixels), pixels.device

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator).to(device) * (high - low) + low

    def chosen(probability: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) < probability).to(device)[:, None, None, None]

    # Geometry: one affine map per image. Padding is white because the inverted image is padded with zeros.
    scale = draw(0.6, 1.15)
    aspect = draw(-0.15, 0.15).exp()
    angle = draw(-0.35, 0.35) * (torch.rand(count, generator=generator) < 0.6).to(device)
    flip = torch.where(chosen(0.5).flatten() & may_flip, -1.0, 1.0)
    room = (1.1 - scale).clamp(min=0.08)
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([flip * cosine / (scale * aspect), -sine / scale, draw(-1, 1) * room], dim=1),
            torch.stack([flip * sine / scale, cosine * aspect / scale, draw(-1, 1) * room], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    pixels = 1 - F.grid_sample(1 - pixels, grid, align_corners=False)

    def change(probability: float, edit) -> None:
        rows = (torch.rand(count, generator=generator) < probability).nonzero().flatten().to(device)
        if len(rows):
            pixels[rows] = edit(pixels[rows], rows)

    def contour(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Dark lines where the colours of a neighbourhood differ, `(b, 1, H, W)`."""
        spread = F.max_pool2d(x, 3, stride=1, padding=1) + F.max_pool2d(-x, 3, stride=1, padding=1)
        return 1 - (spread.amax(dim=1, keepdim=True) * strength[rows]).clamp(0, 1)

    def saturate(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        grey = (x * x.new_tensor(LUMA)[None, :, None, None]).sum(dim=1, keepdim=True)
        return grey + (x - grey) * saturation[rows]

    strength = draw(1.0, 3.0)[:, None, None, None]
    saturation = draw(0.4, 1.6)[:, None, None, None]
    tint = torch.rand(count, 3, generator=generator).to(device)[:, :, None, None] * 0.5 + 0.75
    tint = tint * draw(0.6, 1.3)[:, None, None, None]
    change(0.12, lambda x, rows: -F.max_pool2d(-x, 3, stride=1, padding=1))  # thicker strokes
    change(0.06, lambda x, rows: F.max_pool2d(x, 3, stride=1, padding=1))  # thinner strokes
    change(0.25, lambda x, rows: x * contour(x, rows))  # an outline over the drawing
    change(0.12, lambda x, rows: contour(x, rows).expand_as(x))  # an outline alone
    change(0.5, saturate)
    change(0.2, lambda x, rows: (x * x.new_tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True).expand_as(x))
    change(0.6, lambda x, rows: 1 - (1 - x) * tint[rows])
    change(0.04, lambda x, rows: 1 - x)
    return pixels.clamp(0, 1)


class DropPatches:
    """Forward hook on `vision_model.embeddings`: keeps the class token and a random share of the patches."""

    def __init__(self, share: float):
        self.share = share

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self.share == 0:
            return output
        patches = output.shape[1] - 1
        keep = max(1, round(patches * (1 - self.share)))
        order = torch.rand(len(output), patches, device=output.device).argsort(dim=1)[:, :keep] + 1
        kept = output.gather(1, order[..., None].expand(-1, -1, output.shape[-1]))
        return torch.cat([output[:, :1], kept], dim=1)  # (batch, 1 + keep, width)


def contrastive_loss(logits_per_image: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy in which all pairs of one group are positives, each with equal share."""
    matches = groups[:, None] == groups[None, :]
    target = matches / matches.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits_per_image, target) + F.cross_entropy(logits_per_image.T, target)) / 2


class EmojiCollator:
    """Draws pixels and captions of the given rows: augmented in training, plain in evaluation."""

    def __init__(self, rows: datasets.Dataset, processor: CLIPProcessor, seed: int):
        self.pixels = decode(rows["image"])
        self.names = rows["name"]
        self.keywords = rows["keywords"]
        concepts = sorted(set(rows["concept"]))
        index = {concept: i for i, concept in enumerate(concepts)}
        self.groups = torch.tensor([index[concept] for concept in rows["concept"]])
        self.may_flip = torch.tensor(
            [not {"left", "right"} & set(name.replace("-", " ").split()) for name in self.names]
        )
        self.tokenizer = processor.tokenizer
        self.mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_processor.image_std)[:, None, None]
        self.generator = torch.Generator().manual_seed(seed)
        self.random = np.random.default_rng(seed)

    def caption(self, row: int) -> str:
        name = self.names[row]
        keywords = self.keywords[row]
        if keywords and self.random.random() < 0.3:
            picked = self.random.choice(keywords, size=min(len(keywords), self.random.integers(1, 4)), replace=False)
            name = f"{name}, {', '.join(picked)}"
        return self.random.choice(TEMPLATES).format(name)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        index = [row["row"] for row in rows]
        pixels = self.pixels[index].float() / 255
        pixels = augment(pixels, self.may_flip[index], self.generator)
        texts = self.tokenizer([self.caption(i) for i in index], padding=True, truncation=True, return_tensors="pt")
        return {**texts, "pixel_values": (pixels - self.mean) / self.std, "groups": self.groups[index]}


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the transformer blocks, AdamW for everything else, behind one optimizer's face.

    Muon (https://arxiv.org/abs/2502.16982) reached the same loss in about three quarters of AdamW's steps in a
    comparison over the first 200.
    """

    def __init__(self, model: nn.Module, muon_lr: float, lr: float, weight_decay: float, betas: tuple[float, float]):
        blocks, matrices, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ".layers." in name:
                blocks.append(parameter)
            else:
                (matrices if parameter.ndim > 1 else vectors).append(parameter)
        decayed = {"params": matrices, "weight_decay": weight_decay}
        self.optimizers = (
            torch.optim.Muon(blocks, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([decayed, {"params": vectors, "weight_decay": 0.0}], lr=lr, betas=betas),
        )
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict):
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


class PatchDropoutSchedule(TrainerCallback):
    """Linear from the first to the last share of dropped patches: cheap steps early, whole images late."""

    def __init__(self, hook: DropPatches, last: float):
        self.hook, self.first, self.last = hook, hook.share, last

    def on_step_begin(self, args, state, control, **kwargs):
        self.hook.share = self.first + (self.last - self.first) * state.global_step / state.max_steps


class ContrastiveTrainer(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model=None):
        self.optimizer = MuonAdamW(
            self.model,
            muon_lr=self.args.muon_learning_rate,
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
        )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        groups = inputs.pop("groups")
        outputs = model(**inputs)
        loss = contrastive_loss(outputs.logits_per_image.float(), groups)
        return (loss, outputs) if return_outputs else loss


@torch.no_grad()
def add_constant_feature(model: CLIPModel, pixel_values: torch.Tensor, ratio: float = 0.75) -> CLIPModel:
    """The same model with one more embedding dimension, in which all images have the same value and all texts zero.

    The images of large CLIPs share a strong common direction; those of a model trained on a few thousand drawings do
    not. A "no" text needs it to lie closer to *every* image than the text of an absent class does. The value is
    `ratio` times the mean norm of the embeddings of `pixel_values`; `logit_scale` grows so that logits stay the same.

    The constant comes out of the last layer norm: its output before gain and bias sums to zero, so the projection
    `1 / gain` sees the bias alone, and the bias is shifted where the other projections do not see it.
    """
    dim = model.config.projection_dim
    norm, projection = model.vision_model.post_layernorm, model.visual_projection.weight  # (dim, width)
    length = model.get_image_features(pixel_values).pooler_output.norm(dim=-1).mean()
    row = 1 / norm.weight
    row = row * (projection.norm(dim=1).mean() / row.norm())
    unseen = row - torch.linalg.pinv(projection) @ (projection @ row)  # the part of `row` in the null space
    norm.bias += unseen * ((ratio * length - row @ norm.bias) / (row @ unseen))
    config = copy.deepcopy(model.config)
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = dim + 1
    larger = CLIPModel(config)
    state = model.state_dict()
    state["visual_projection.weight"] = torch.cat([projection, row[None]])
    text = model.text_projection.weight
    state["text_projection.weight"] = torch.cat([text, text.new_zeros(1, text.shape[1])])
    state["logit_scale"] = model.logit_scale + 0.5 * math.log(1 + ratio**2)
    larger.load_state_dict(state)
    return larger.to(model.device).eval()


@torch.no_grad()
def zero_shot_accuracy(model: CLIPModel, processor: CLIPProcessor, rows: datasets.Dataset) -> dict[str, float]:
    """Top-1 among the names of all concepts, and among 50 of them (mean of ten draws), on plain images."""
    model.eval()
    names = dict(zip(rows["concept"], rows["name"], strict=True))
    concepts = sorted(names)
    tokens = processor.tokenizer(
        [f"an emoji of a {names[c]}." for c in concepts], padding=True, truncation=True, return_tensors="pt"
    )
    device = model.device
    texts = F.normalize(model.get_text_features(**tokens.to(device)).pooler_output.float(), dim=-1)
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]
    pixels = (decode(rows["image"]).float() / 255 - mean) / std
    images = torch.cat([model.get_image_features(x.to(device)).pooler_output.float() for x in pixels.split(512)])
    similarity = F.normalize(images, dim=-1) @ texts.T
    target = torch.tensor([concepts.index(c) for c in rows["concept"]], device=device)
    result = {"top1": (similarity.argmax(1) == target).float().mean().item()}
    draw = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(10):
        chosen = torch.randperm(len(concepts), generator=draw)[:50].to(device)
        mask = (target[:, None] == chosen).any(1)
        hits.append((chosen[similarity[mask][:, chosen].argmax(1)] == target[mask]).float().mean().item())
    result["top1_of_50"] = float(np.mean(hits))
    return result


def main(args: PretrainArguments) -> None:
    set_seed(args.seed)
    torch.set_num_threads(args.image_threads)
    rows = datasets.load_dataset("parquet", data_files=args.dataset, split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False)).with_format(None)
    held_out = set(filter(None, args.validation_styles.split(",")))
    training = rows.filter(lambda style: style in TRAIN_STYLES and style not in held_out, input_columns="style")
    max_length = 32
    texts = [f"{name} {' '.join(words)}" for name, words in zip(training["name"], training["keywords"], strict=True)]
    texts += [t.format(name) for t in TEMPLATES for name in sorted(set(training["name"]))]
    tokenizer = train_tokenizer(sorted(texts), args.vocab_size, max_length)
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}), tokenizer
    )
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": args.text_width,
            "intermediate_size": 4 * args.text_width,
            "num_hidden_layers": args.text_layers,
            "num_attention_heads": args.text_width // 64,
            "max_position_embeddings": max_length,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": 128,
        },
        vision_config={
            "hidden_size": args.vision_width,
            "intermediate_size": 4 * args.vision_width,
            "num_hidden_layers": args.vision_layers,
            "num_attention_heads": args.vision_width // 64,
            "image_size": 64,
            "patch_size": args.patch_size,
            "hidden_act": "gelu",
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    model = CLIPModel(config)
    drop_patches = DropPatches(args.patch_dropout)
    model.vision_model.embeddings.register_forward_hook(drop_patches)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(training)} images")
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"row": range(len(training))}),
        data_collator=EmojiCollator(training, processor, args.seed),
        callbacks=[PatchDropoutSchedule(drop_patches, args.last_patch_dropout)],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    plain = trainer.data_collator.pixels[:: max(1, len(training) // 512)].float() / 255
    plain = (plain - trainer.data_collator.mean) / trainer.data_collator.std
    model = add_constant_feature(model.eval(), plain.to(model.device))
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    for style in sorted(held_out):
        held = rows.filter(lambda s, style=style: s == style, input_columns="style")
        print(style, zero_shot_accuracy(model, processor, held))


if __name__ == "__main__":
    parser = HfArgumentParser(PretrainArguments)
    parser.set_defaults(
        remove_unused_columns=False,
        per_device_train_batch_size=256,
        learning_rate=2e-3,
        weight_decay=0.1,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=150,
        max_steps=3000,
        dataloader_drop_last=True,
        save_strategy="no",
        logging_steps=25,
        report_to="none",
        bf16=True,
    )
    main(parser.parse_args_into_dataclasses()[0])
