# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the common tests of transformers importable from where `fetch_transformers_tests.py` put them."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / ".transformers" / importlib.metadata.version("transformers")))


def pytest_configure(config: pytest.Config) -> None:
    for name in (
        "accelerate_tests",
        "flash_attn_test",
        "flash_attn_3_test",
        "flash_attn_4_test",
        "slow",
        "torch_compile_test",
    ):
        config.addinivalue_line("markers", f"{name}: of the common tests of transformers")
