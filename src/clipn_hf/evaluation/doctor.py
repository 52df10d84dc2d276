# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a benchmark before anything is measured: its class names and its images.

Labels are examined as CLIP reads them, in lower case: names twice in the list, names cut short, names that no caption
has, names that mean the same, names that a model cannot tell apart, OOD classes that are ID classes or kinds of them.
Of images it is found out which ones are in several sets, and what tells the sets apart though it has nothing to do
with what is on the images, such as their size.

That two names mean the same, or that one is a kind of the other (a husky is a dog), is seen where WordNet, the
spelling or the text encoder says so. WordNet does not know every name, nor which of its senses is meant; read the
class lists yourself.
"""

from .findings import MAX_ITEMS, Finding, format_findings
from .image_examination import NamedImages, examine_images
from .label_examination import examine_labels

__all__ = ["MAX_ITEMS", "Finding", "NamedImages", "examine_images", "examine_labels", "format_findings"]
