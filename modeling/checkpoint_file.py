# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the YAML files of this folder, one per released checkpoint, into the arguments of the scripts beside them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

KEYS = (
    "base",
    "processor",
    "activation",
    "vision_heads",
    "text_heads",
    "no_prompt_type",
    "num_no_prompts",
    "templates",
    "no_templates",
)


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; values of the file named by `--config` replace defaults and yield to the command line.

    A file describes a checkpoint for both scripts, so keys that only the other script uses are passed over.

    Raises:
        SystemExit: The command line is wrong, or the file is absent, is not a mapping, or has an unknown key.
    """
    parser.add_argument("--config", type=Path, help="YAML file of a checkpoint; the command line overrides it.")
    args = parser.parse_args(argv)
    if args.config is None:
        return args
    try:
        values = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"cannot read --config {args.config}: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {args.config} must hold keys and values, got {type(values).__name__}")
    if unknown := sorted(str(key) for key in values if key not in KEYS):
        parser.error(f"unknown keys in {args.config}: {', '.join(unknown)}; known are {', '.join(KEYS)}")
    parser.set_defaults(**{key: value for key, value in values.items() if key in vars(args)})
    return parser.parse_args(argv)
