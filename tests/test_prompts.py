# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipn_hf.prompts import (
    DEFAULT_TEMPLATES,
    NO_TEMPLATES,
    fill_templates,
    validate_labels,
    validate_templates,
)

texts = st.text(min_size=1).filter(str.strip)
label_lists = st.lists(texts, min_size=1, max_size=5, unique=True)
template_lists = st.lists(
    st.tuples(st.text().filter(lambda text: "{" not in text and "}" not in text), st.text(alphabet="abc .")).map(
        "{}".join
    ),
    min_size=1,
    max_size=4,
)


def test_template_pools_are_pairs() -> None:
    assert len(DEFAULT_TEMPLATES) == len(NO_TEMPLATES) == len(set(DEFAULT_TEMPLATES) | set(NO_TEMPLATES)) / 2
    validate_templates(DEFAULT_TEMPLATES)
    validate_templates(NO_TEMPLATES)


@given(labels=label_lists, templates=template_lists)
def test_prompts_are_filled_label_by_label(labels: list[str], templates: list[str]) -> None:
    prompts = fill_templates(labels, templates)
    assert len(prompts) == len(labels) * len(templates)
    for c, label in enumerate(labels):
        for t, template in enumerate(templates):
            before, after = template.split("{}")
            assert prompts[c * len(templates) + t] == before + label + after


@pytest.mark.parametrize("label", ["{}", "a {0} b", "100 % {sure}", "{", "猫 🐈"])
def test_labels_are_never_read_as_format_strings(label: str) -> None:
    assert fill_templates([label], ["a photo of a {}."]) == [f"a photo of a {label}."]


def test_other_braces_in_a_template_are_text() -> None:
    assert fill_templates(["cat"], ["a {} {x} }{."]) == ["a cat {x} }{."]


def test_subclasses_of_strings_become_strings() -> None:
    class Animal(str):
        def __str__(self) -> str:
            return "an animal"

    for check, values, expected in (
        (validate_labels, [*np.array(["cat", "dog"])], ["cat", "dog"]),
        (validate_labels, [Animal("cat")], ["cat"]),
        (validate_templates, [np.str_("a {}.")], ["a {}."]),
    ):
        found = check(values)
        assert found == expected
        assert {type(text) for text in found} == {str}


@given(labels=label_lists)
def test_labels_come_back_unchanged_in_a_new_list(labels: list[str]) -> None:
    checked = validate_labels(labels)
    assert checked == labels
    assert checked is not labels


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], ValueError, "`labels` is empty"),
        ((), ValueError, "`labels` is empty"),
        ("cat", TypeError, "must be a list of strings.*got str: 'cat'"),
        (None, TypeError, "got NoneType"),
        ({"cat", "dog"}, TypeError, "got set"),
        (["cat", 3], TypeError, r"`labels\[1\]` must be a string, got int: 3"),
        (["cat", None], TypeError, r"`labels\[1\]` must be a string, got NoneType"),
        ([b"cat"], TypeError, r"`labels\[0\]` must be a string, got bytes"),
        (["cat", ""], ValueError, r"`labels\[1\]` is empty or blank \(''\)"),
        ([" \t\n"], ValueError, r"`labels\[0\]` is empty or blank"),
        (["cat", "dog", "cat"], ValueError, r"contains 'cat' twice \(positions 0 and 2\)"),
    ],
)
def test_bad_labels(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validate_labels(labels)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        fill_templates(labels, ["a {}."])  # type: ignore[arg-type]


def test_one_label_is_allowed() -> None:
    assert validate_labels(["cat"]) == ["cat"]


def test_labels_that_differ_in_case_or_space_are_different() -> None:
    assert validate_labels(["Cat", "cat", "cat "]) == ["Cat", "cat", "cat "]


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ([], ValueError, "`templates` is empty"),
        ("a {}.", TypeError, "must be a list of strings.*got str"),
        ([7], TypeError, r"`templates\[0\]` must be a string, got int: 7"),
        (["a {}.", "a photo"], ValueError, r"`templates\[1\]` must contain `{}` exactly once.*got 'a photo'"),
        (["{} and {}"], ValueError, "exactly once.*got '{} and {}'"),
        (["a {0}."], ValueError, "exactly once"),
        (["a {label}."], ValueError, "exactly once"),
    ],
)
def test_bad_templates(templates: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validate_templates(templates)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        fill_templates(["cat"], templates)  # type: ignore[arg-type]


def test_template_errors_call_the_argument_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"`no_templates\[0\]`"):
        validate_templates(["no photo"], name="no_templates")
