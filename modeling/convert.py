# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of the CLIPN authors, or a plain OpenCLIP one, to transformers' format.

python modeling/convert.py epoch_10.pt clipn-vitb16 --config modeling/clipn-vitb16.yaml
"""

from __future__ import annotations

import argparse

from checkpoint_file import parse_args

from clipn_hf.modeling.conversion import ACTIVATIONS, convert_checkpoint, format_summary


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Original file: .pt, .pth, .bin or .safetensors.")
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument("--processor", help="Hub id or folder of the tokenizer and image processor.")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, default="gelu", help="quick_gelu for weights that descend from OpenAI's."
    )
    parser.add_argument("--vision_heads", type=int, help="Attention heads of the image encoder, if not width / 64.")
    parser.add_argument("--text_heads", type=int, help="Attention heads of the text encoder, if not width / 64.")
    parser.add_argument("--eos_token_id", type=int, help="Token at which texts are pooled.")
    parser.add_argument("--templates", nargs="+", help="Templates of a CLIPN, each with one {}.")
    parser.add_argument("--no_templates", nargs="+", help='"no" templates of a CLIPN for hand-crafted "no" prompts.')
    parser.add_argument("--overwrite", action="store_true", help="Replace a checkpoint that is in the output folder.")
    return parser


def main(args: argparse.Namespace) -> None:
    summary = convert_checkpoint(
        args.source,
        args.output,
        processor=args.processor,
        activation=args.activation,
        vision_heads=args.vision_heads,
        text_heads=args.text_heads,
        eos_token_id=args.eos_token_id,
        templates=args.templates,
        no_templates=args.no_templates,
        overwrite=args.overwrite,
    )
    print(format_summary(summary))


if __name__ == "__main__":
    parser = make_parser()
    try:
        main(parse_args(parser))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
