# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
