# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""How many short texts a second become embeddings: as this package encodes them, and each at the full length.

Published code of zero-shot detectors pads every text to the 77 tokens that CLIP can read. Here a batch holds texts of
nearly the same length and is padded to its longest, which changes nothing: the text encoder of CLIP looks back only,
and the embedding is read off the end of the text. The texts are words of WordNet in one template. Without `--model` it
is a CLIP ViT-B/16 with random weights and the tokenizer of the embedded checkpoint, whose texts are a little longer
than those of CLIP's own. Both ways take turns, so that what else the machine does is shared; the ratio counts.

    python benchmarks/text_encoding.py --output benchmarks/results/text_encoding.json
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from clipn_hf import DualEncoder
from clipn_hf.encoders import EMBEDDED_CHECKPOINT, TEXT_BATCH_SIZE
from clipn_hf.files import atomic_path
from clipn_hf.negatives import load_corpus

TEMPLATE = "The nice {}."


def random_vit_b16(seed: int = 0) -> DualEncoder:
    """A CLIP ViT-B/16 with random weights, and the processor of the embedded checkpoint at its image size."""
    processor = AutoProcessor.from_pretrained(EMBEDDED_CHECKPOINT)
    processor.image_processor.size = {"shortest_edge": 224}
    processor.image_processor.crop_size = {"height": 224, "width": 224}
    tokenizer = processor.tokenizer
    tokenizer.model_max_length = 77
    token_ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), **token_ids},
        vision_config={"patch_size": 16},
    )
    processor.templates = processor.no_templates = None
    return DualEncoder(CLIPModel(config), processor)


@torch.no_grad()
def encode_at_full_length(encoder: DualEncoder, texts: list[str]) -> Tensor:
    """Embeddings `(texts, dim)`, each text padded to all that the model can read."""
    embeddings = []
    for start in range(0, len(texts), TEXT_BATCH_SIZE):
        tokens = encoder.processor.tokenizer(
            texts[start : start + TEXT_BATCH_SIZE],
            padding="max_length",
            truncation=True,
            max_length=encoder.max_text_length,
            return_tensors="pt",
        ).to(encoder.device)
        features = encoder.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embeddings.append(normalize(features.pooler_output.float(), dim=-1))
    return torch.cat(embeddings)


def main(model: str | None = None, count: int = 2000, rounds: int = 2, output: Path | None = None) -> float:
    """Print all numbers; return how many times as fast this package is."""
    encoder = random_vit_b16() if model is None else DualEncoder.from_pretrained(model)
    words = load_corpus("wordnet", max_candidates=count).words
    texts = [TEMPLATE.format(word) for word in words]
    lengths = [len(ids) for ids in encoder.processor.tokenizer(texts)["input_ids"]]
    # The first pass through a model sets things up that later ones find.
    encoder.text_embeddings(texts[:8])
    encode_at_full_length(encoder, texts[:8])
    seconds, difference = {"full": 0.0, "ours": 0.0}, 0.0
    for round_ in range(rounds):
        share = texts[round_::rounds]
        start = time.perf_counter()
        full = encode_at_full_length(encoder, share).cpu()
        middle = time.perf_counter()
        found = encoder.text_embeddings(share).cpu()
        seconds["full"] += middle - start
        seconds["ours"] += time.perf_counter() - middle
        difference = max(difference, (found - full).abs().max().item())
    ratio = seconds["full"] / seconds["ours"]
    results: dict[str, Any] = {
        "model": model or "CLIP ViT-B/16, random weights",
        "device": encoder.device.type,
        "threads": torch.get_num_threads(),
        "texts": len(texts),
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "max_tokens": max(lengths),
        "full_length": encoder.max_text_length,
        "texts_per_second_full_length": round(len(texts) / seconds["full"], 2),
        "texts_per_second": round(len(texts) / seconds["ours"], 2),
        "ratio": round(ratio, 2),
        "largest_difference": difference,
    }
    print(
        "\n".join(
            ["| what | value |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in results.items())]
        )
    )
    if output is not None:
        with atomic_path(output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of a CLIP; default: random weights")
    parser.add_argument("--count", type=int, default=2000, help="of texts; default: 2000")
    parser.add_argument("--rounds", type=int, default=2, help="in which both ways take turns; default: 2")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default: 2")
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    main(arguments.model, arguments.count, arguments.rounds, arguments.output)
