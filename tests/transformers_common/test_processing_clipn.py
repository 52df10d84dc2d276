# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own tests of every processor, run on CLIPNProcessor."""

import unittest

import pytest
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from clipn_hf import CLIPNProcessor

common = pytest.importorskip(
    "transformers_tests.test_processing_common",
    reason="needs the common tests of transformers: run tests/fetch_transformers_tests.py",
)


class CLIPNProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = CLIPNProcessor

    @classmethod
    def _setup_tokenizer(cls):
        letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
        tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
        return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18})

    @staticmethod
    def prepare_processor_dict():
        return {"templates": ["a photo of a {}."], "no_templates": ["a photo of no {}."]}
