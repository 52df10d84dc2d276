# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""A recipe, the file that builds the checkpoint and its card go by one name and say the same."""

from dataclasses import fields
from pathlib import Path

import pytest

from clipn_hf import CLIPNConfig
from clipn_hf.script_arguments import read_config
from clipn_hf.training import CLIPOSArguments, CoOpArguments, FewShotArguments, LoCoOpArguments

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


def test_recipes_of_prompts_are_the_defaults_of_the_trainers() -> None:
    types = {"coop": CoOpArguments, "locoop": LoCoOpArguments, "clip-os": CLIPOSArguments}
    # What is no matter of the method: where it goes, how long it takes, and the images that the authors vary.
    own = {"output_dir", "num_train_epochs", "num_cached_views", "seed", "save_strategy", "save_total_limit"}
    for name, kind in types.items():
        recipe = read_config(ROOT / "training" / "recipes" / f"{name}.yaml")
        defaults = {item.name: item.default for item in fields(kind) if item.name in recipe}
        stated = {key: value for key, value in recipe.items() if key in defaults and key not in own}
        stated.pop("dataloader_num_workers")
        assert {key: (value, defaults[key]) for key, value in stated.items() if value != defaults[key]} == {}
        # All that the method has beside what it shares with the others is stated, but for what has no number.
        missing = {item.name for item in fields(kind)} - {item.name for item in fields(FewShotArguments)} - {*recipe}
        assert missing <= {"num_outliers", "classified_features", "unknown_label"}
        assert (recipe["num_cached_views"], recipe["crop_scale"], recipe["flip_probability"]) == (0, [0.08, 1.0], 0.5)
