# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A recipe, the file that builds the checkpoint and its card go by one name and say the same."""

from pathlib import Path

import pytest

from clipn_hf import CLIPNConfig
from clipn_hf.script_arguments import read_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("clipn-*.yaml"))
CHECKPOINTS = sorted((ROOT / "modeling").glob("*.yaml"))
PROMPTS = ("no_prompt_type", "num_no_prompts", "templates", "no_templates")


def test_every_checkpoint_has_a_recipe_and_a_card() -> None:
    names = [path.stem for path in RECIPES]
    assert names == [path.stem for path in CHECKPOINTS]
    assert set(names) <= {path.stem for path in (ROOT / "model_cards").glob("*.md")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_agrees_with_the_checkpoint(path: Path) -> None:
    recipe, checkpoint = read_config(path), read_config(ROOT / "modeling" / path.name)
    assert recipe["output_dir"] == f"runs/{path.stem}"
    assert recipe["model_name_or_path"] == checkpoint["base"]
    # What one of them leaves out is what it gets.
    made = [
        CLIPNConfig(**{name: values[name] for name in PROMPTS if name in values}) for values in (recipe, checkpoint)
    ]
    for name in PROMPTS:
        assert getattr(made[0], name) == getattr(made[1], name), name
