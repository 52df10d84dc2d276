# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Make a CLIPN that is ready for training from a CLIP: its text encoder is copied into the "no" text encoder.

python modeling/initialize.py clipn-vitb16-start --config modeling/clipn-vitb16.yaml
python modeling/initialize.py clipn-start --base openai/clip-vit-base-patch16
"""

from __future__ import annotations

import argparse

from checkpoint_file import parse_args

from clipn_hf import CLIPNModel
from clipn_hf.modeling.conversion import load_processor, save_checkpoint


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="Folder to write.")
    parser.add_argument("--base", help="Hub id or folder of a CLIP.")
    parser.add_argument("--processor", help="Where tokenizer and image processor come from, if not --base.")
    parser.add_argument(
        "--no_prompt_type", choices=("learnable", "handcrafted"), default="learnable", help='Form of the "no" prompts.'
    )
    parser.add_argument("--num_no_prompts", type=int, default=16, help='Number of learnable "no" prompts.')
    parser.add_argument("--templates", nargs="+", help="Templates, each with one {}.")
    parser.add_argument("--no_templates", nargs="+", help='Their negations, for hand-crafted "no" prompts.')
    parser.add_argument("--overwrite", action="store_true", help="Replace a checkpoint that is in the output folder.")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.base is None:
        raise ValueError("No CLIP to start from: give --base ID_OR_FOLDER, or a --config that names one.")
    model = CLIPNModel.from_clip(
        args.base,
        no_prompt_type=args.no_prompt_type,
        num_no_prompts=args.num_no_prompts,
        templates=args.templates,
        no_templates=args.no_templates,
    )
    processor = load_processor(args.processor or args.base, model.config)
    save_checkpoint(args.output, model, processor, overwrite=args.overwrite)
    trainable = sum(parameter.numel() for parameter in model.no_parameters())
    print(f'Written to {args.output}: {model.num_parameters():,} parameters, {trainable:,} of them "no" parameters.')


if __name__ == "__main__":
    parser = make_parser()
    try:
        main(parse_args(parser))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
