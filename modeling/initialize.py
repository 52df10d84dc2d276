# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Make a CLIPN that is ready for training from a CLIP: its text encoder is copied into the "no" text encoder.

python modeling/initialize.py clipn-vitb16-start --config modeling/clipn-vitb16.yaml
python modeling/initialize.py clipn-start --base openai/clip-vit-base-patch16
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from clipn_hf import CLIPNModel, IncompleteCheckpointError
from clipn_hf.modeling.conversion import load_processor, save_checkpoint
from clipn_hf.script_arguments import parse_with_config

# Of a file in this folder, what `convert.py` alone reads
OTHER_KEYS = ("activation", "vision_heads", "text_heads", "eos_token_id")


@dataclass
class InitializationArguments:
    """The CLIP to start from, and the "no" prompts that it gets."""

    base: str = field(metadata={"help": "Hub id or folder of a CLIP."})
    processor: str | None = field(
        default=None, metadata={"help": "Where tokenizer and image processor come from, if not from the base."}
    )
    no_prompt_type: Literal["learnable", "handcrafted"] = field(
        default="learnable", metadata={"help": 'Form of the "no" prompts.'}
    )
    num_no_prompts: int = field(default=16, metadata={"help": 'Number of learnable "no" prompts.'})
    templates: list[str] | None = field(default=None, metadata={"help": "Templates, each with one {}."})
    no_templates: list[str] | None = field(
        default=None, metadata={"help": 'Their negations, for hand-crafted "no" prompts.'}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a checkpoint that is in the output folder."})


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[InitializationArguments, str]:
    """Parse the command line and the file of a checkpoint; end the program with a message where they are wrong."""
    args, output = parse_with_config(
        [InitializationArguments],
        argv,
        positionals={"output": "Folder to write."},
        other_keys=OTHER_KEYS,
        description=__doc__,
    )
    return args, output


def main(args: InitializationArguments, output: str) -> None:
    """Write the CLIPN and its processor to the folder `output`."""
    model = CLIPNModel.from_clip(
        args.base,
        no_prompt_type=args.no_prompt_type,
        num_no_prompts=args.num_no_prompts,
        templates=args.templates,
        no_templates=args.no_templates,
    )
    processor = load_processor(args.processor or args.base, model.config)
    save_checkpoint(output, model, processor, overwrite=args.overwrite)
    trainable = sum(parameter.numel() for parameter in model.no_parameters())
    print(f'Written to {output}: {model.num_parameters():,} parameters, {trainable:,} of them "no" parameters.')


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except (IncompleteCheckpointError, OSError, TypeError, ValueError) as error:
        sys.exit(f"Error: {error}")
