# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own tests of every configuration, run on CLIPNConfig."""

import unittest

import pytest

from clipn_hf import CLIPNConfig

common = pytest.importorskip(
    "transformers_tests.test_configuration_common",
    reason="needs the common tests of transformers: run tests/fetch_transformers_tests.py",
)


class ModelTester:
    def get_config(self):
        return CLIPNConfig(
            text_config={"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 600, "eos_token_id": 599},
            num_no_prompts=3,
        )


class CLIPNConfigTest(unittest.TestCase):
    model_tester = ModelTester()

    def test_config(self):
        for values in (
            {"num_no_prompts": 3, "templates": ["a {}."]},
            {"no_prompt_type": "handcrafted"},
            {"no_prompt_type": "handcrafted", "templates": ["a {}."], "no_templates": ["no {}."]},
        ):
            with self.subTest(values=values):
                common.ConfigTester(self, CLIPNConfig, has_text_modality=False, **values).run_common_tests()
