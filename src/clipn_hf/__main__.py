# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m clipn_hf` is the command `clipn-hf`."""

from .cli import main

main()
