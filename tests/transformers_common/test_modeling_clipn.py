# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own tests of every model, run on CLIPNModel with learnable and with hand-crafted "no" prompts."""

import unittest

import pytest
import torch

from clipn_hf import CLIPNConfig, CLIPNModel

common = pytest.importorskip(
    "transformers_tests.test_modeling_common",
    reason="needs the common tests of transformers: run tests/fetch_transformers_tests.py",
)


class CLIPNModelTester:
    batch_size = 12
    seq_length = 7
    image_size = 30
    patch_size = 5
    vocab_size = 99
    eos_token_id = 98
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    is_training = True

    def __init__(self, no_prompt_type):
        self.no_prompt_type = no_prompt_type

    def get_config(self):
        tower = {
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
        }
        return CLIPNConfig(
            text_config={
                **tower,
                "vocab_size": self.vocab_size,
                "max_position_embeddings": 32,
                "bos_token_id": 0,
                "eos_token_id": self.eos_token_id,
            },
            vision_config={**tower, "image_size": self.image_size, "patch_size": self.patch_size},
            projection_dim=32,
            no_prompt_type=self.no_prompt_type,
            num_no_prompts=3,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.eos_token_id)
        input_ids[:, -1] = self.eos_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": common.floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
        }
        if self.no_prompt_type == "handcrafted":
            inputs["no_input_ids"] = input_ids
        return self.get_config(), inputs


class LearnableCLIPNModelTest(common.ModelTesterMixin, unittest.TestCase):
    no_prompt_type = "learnable"
    all_model_classes = (CLIPNModel,)
    additional_model_inputs = ("pixel_values",)
    has_attentions = False
    test_resize_embeddings = False
    _is_composite = True

    def setUp(self):
        self.model_tester = CLIPNModelTester(self.no_prompt_type)

    @unittest.skip("the towers have their own hidden states; CLIP skips this test too")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("the towers have their own hidden states; CLIP skips this test too")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class HandcraftedCLIPNModelTest(LearnableCLIPNModelTest):
    no_prompt_type = "handcrafted"
    additional_model_inputs = ("pixel_values", "no_input_ids")
