# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint of the CLIPN authors, or a plain OpenCLIP one, to transformers' format.

python modeling/convert.py epoch_10.pt clipn-vitb16 --config modeling/clipn-vitb16.yaml
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from clipn_hf.modeling.conversion import convert_checkpoint, format_summary
from clipn_hf.script_arguments import parse_with_config

# Of a file in this folder, what `initialize.py` alone reads
OTHER_KEYS = ("base", "no_prompt_type", "num_no_prompts")


@dataclass
class ConversionArguments:
    """What the weights do not say."""

    processor: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the tokenizer and image processor."}
    )
    activation: Literal["gelu", "quick_gelu"] = field(
        default="gelu", metadata={"help": "quick_gelu for weights that descend from OpenAI's."}
    )
    vision_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the image encoder, if not width / 64."}
    )
    text_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the text encoder, if not width / 64."}
    )
    eos_token_id: int | None = field(default=None, metadata={"help": "Token at which texts are pooled."})
    templates: list[str] | None = field(default=None, metadata={"help": "Templates of a CLIPN, each with one {}."})
    no_templates: list[str] | None = field(
        default=None, metadata={"help": '"no" templates of a CLIPN for hand-crafted "no" prompts.'}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a checkpoint that is in the output folder."})


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ConversionArguments, str, str]:
    """Parse the command line and the file of a checkpoint; end the program with a message where they are wrong."""
    positionals = {"source": "Original file: .pt, .pth, .bin or .safetensors.", "output": "Folder to write."}
    args, source, output = parse_with_config(
        [ConversionArguments], argv, positionals=positionals, other_keys=OTHER_KEYS, description=__doc__
    )
    return args, source, output


def main(args: ConversionArguments, source: str, output: str) -> None:
    """Convert `source` into the folder `output` and print what was found."""
    print(format_summary(convert_checkpoint(source, output, **asdict(args))))


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"Error: {error}")
