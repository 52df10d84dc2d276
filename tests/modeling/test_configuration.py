# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPConfig

from clipn_hf import CLIPNConfig
from clipn_hf.prompts import DEFAULT_TEMPLATES, NO_TEMPLATES


def test_defaults() -> None:
    config = CLIPNConfig()
    assert (config.model_type, config.no_prompt_type, config.num_no_prompts) == ("clipn", "learnable", 16)
    assert config.templates == config.no_templates == list(DEFAULT_TEMPLATES)


def test_handcrafted_defaults_are_pairs() -> None:
    config = CLIPNConfig(no_prompt_type="handcrafted")
    assert config.templates == list(DEFAULT_TEMPLATES)
    assert config.no_templates == list(NO_TEMPLATES)


def test_no_templates_follow_the_templates_of_learnable_prompts() -> None:
    assert CLIPNConfig(templates=["a {}."]).no_templates == ["a {}."]


def test_tuples_become_lists() -> None:
    config = CLIPNConfig(no_prompt_type="handcrafted", templates=DEFAULT_TEMPLATES, no_templates=NO_TEMPLATES)
    assert config.templates == list(DEFAULT_TEMPLATES)
    assert config.no_templates == list(NO_TEMPLATES)
    assert config.to_dict() == CLIPNConfig(no_prompt_type="handcrafted").to_dict()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"no_prompt_type": "handcrafted", "num_no_prompts": 0},
        {"num_no_prompts": 4, "templates": ["a drawing of a {}."]},
        {"no_prompt_type": "handcrafted"},
        {"no_prompt_type": "handcrafted", "templates": ["a {}."], "no_templates": ["no {}."]},
    ],
)
def test_round_trip(values: dict[str, Any], tmp_path: Path) -> None:
    config = CLIPNConfig(text_config={"vocab_size": 600, "eos_token_id": 599}, projection_dim=32, **values)
    config.save_pretrained(tmp_path)
    assert CLIPNConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "clipn"
    for name in ("no_prompt_type", "num_no_prompts", "templates", "no_templates"):
        assert saved[name] == getattr(config, name), f"config.json must state {name}, which changes results"


def test_instances_do_not_share_templates() -> None:
    first, second = CLIPNConfig(), CLIPNConfig()
    first.templates.append("x {}.")
    assert second.templates == second.no_templates == list(DEFAULT_TEMPLATES)
    assert first.no_templates == list(DEFAULT_TEMPLATES)


def test_is_a_clip_configuration() -> None:
    assert isinstance(CLIPNConfig(), CLIPConfig)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"no_prompt_type": "none"}, "no_prompt_type"),
        ({"num_no_prompts": 0}, "`num_no_prompts` must be at least 1, got 0"),
        ({"no_prompt_type": "handcrafted", "num_no_prompts": -1}, "`num_no_prompts` must be at least 0, got -1"),
        ({"num_no_prompts": "many"}, "num_no_prompts"),
        ({"templates": ["a photo"]}, "exactly once.*got 'a photo'"),
        ({"templates": []}, "`templates` is empty"),
        ({"no_templates": ["no photo"]}, r"`no_templates\[0\]`"),
        ({"no_prompt_type": "handcrafted", "templates": ["a {}."]}, "needs `no_templates`"),
        (
            {"no_prompt_type": "handcrafted", "templates": ["a {}.", "the {}."], "no_templates": ["no {}."]},
            "same length, got 2 templates and 1 no_templates",
        ),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    # the errors of strict dataclasses wrap the cause and repeat its text
    with pytest.raises(Exception, match=message):
        CLIPNConfig(**values)
