# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Suites: which images count as ID and as OOD, under which labels, written down in YAML.

This file knows what a suite may say and checks it; it reads no images. Ready suites lie beside it, in `suites/`.
"""

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..negative_settings import CORPORA, FILTERS
from ..prompts import validate_labels, validate_templates
from ..script_arguments import read_config

GROUPS = ("near", "far")  # Of OOD sets.

TEXT_FEATURES = "text_features"  # The corpus of all names that a suite of features has embeddings of.

_FOLDER = Path(__file__).parent
_SUITES = _FOLDER / "suites"

_SUITE_KEYS = (
    *("name", "description", "reference", "protocol", "labels", "templates", "image_size", "id", "fit"),
    *("covariate_shift", "ood", "seeds", "methods", "models", "text_features", "negatives"),
)
_SET_KEYS = ("name", "source", "images", "limit", "classes", "where", "note")
_LABEL_KEYS = ("file", "from", "draw")
_CLASS_KEYS = ("rename", "exclude", "only")
_TEXT_KEYS = ("path", "model", "logit_scale", "logit_bias", "banks")
_BANK_KEYS = ("embeddings", "names", "template", "rename")
_NEGATIVE_KEYS = (
    *("corpus", "quantile", "fraction", "filters", "max_similarity", "max_candidates", "seed"),
    "adjective_templates",
)
_OWN_SET_KEYS = {"fit": ("per_class",), "ood": ("group", "complement")}
_TABLE_KEYS = ("image_column", "label_column", "label_names")
_SOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "imagefolder": (),
    "parquet": _TABLE_KEYS,
    "csv": (*_TABLE_KEYS, "root"),
    "hub": (*_TABLE_KEYS, "config", "split", "revision"),
    "image_list": ("root", "label_names"),
    "features": ("images", "labels", "label_names", "pixels", "rows"),
}
_REQUIRED_SOURCE_KEYS = {"image_list": ("root",), "features": ("images",)}
_TABLES = ("parquet", "csv", "hub")


@dataclass(frozen=True)
class Source:
    """Where the images of a set come from.

    Args:
        kind (`str`): `"imagefolder"`, `"parquet"`, `"csv"`, `"hub"`, `"image_list"` or `"features"`.
        path (`str`): A path from the data root, or the id of a Hub dataset.
        options (`Mapping[str, Any]`): The other keys of the source, such as `label_column`.
    """

    kind: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSet:
    """A set of a suite.

    Args:
        name (`str`): Unlike that of any other set of the suite.
        group (`str`): `"id"`, `"fit"`, `"covariate-shift"`, `"near"` or `"far"`.
        source ([`Source`]): Where the images come from.
        limit (`int`, *optional*): At most that many images, drawn by seed.
        per_class (`int`, *optional*): Exactly that many images of each label, drawn by seed.
        rename (`Mapping[str, str]`, *optional*): How the suite calls classes of the set.
        exclude (`tuple[str, ...]`, *optional*): Classes of the set, by its own names, that are left out.
        only (`tuple[str, ...]`, *optional*): Classes of the set, by its own names; all others are left out.
        only_labels (`bool`, *optional*, defaults to `False`): Leave out the classes that are no labels of the suite.
        where (`Mapping[str, tuple[str, ...]]`, *optional*): Of a table, the values that rows must have in a column.
        complement (`bool`, *optional*, defaults to `False`): Leave out the classes that are labels of the suite.
        note (`str`, *optional*, defaults to `""`): What readers of the results should know about the set.
        images (`int`, *optional*): How many there are by the protocol, before `limit` or `per_class` draw of them.
    """

    name: str
    group: str
    source: Source
    limit: int | None = None
    per_class: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    only_labels: bool = False
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    complement: bool = False
    note: str = ""
    images: int | None = None


@dataclass(frozen=True)
class SuiteLabels:
    """The labels of a suite, or how to find them.

    Args:
        names (`tuple[str, ...]`, *optional*): The labels. Without them, the classes of the ID set are the labels.
        draw (`int`, *optional*): So many of these classes, drawn by seed.
        rename (`Mapping[str, str]`, *optional*): How data sets call the labels; counts for all sets.
    """

    names: tuple[str, ...] | None = None
    draw: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextBank:
    """Text embeddings of one template.

    Args:
        embeddings (`str`): Key of the embeddings, one row per name.
        names (`str` or `tuple[str, ...]`): Key of the names, or the names.
        template (`str`): The template that they were embedded with.
        rename (`Mapping[str, str]`, *optional*): How the suite calls names of the bank.
    """

    embeddings: str
    names: str | tuple[str, ...]
    template: str
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextFeatures:
    """Text embeddings that belong to sets of image embeddings.

    Args:
        path (`str`): A file from the data root, `.npz` or `.safetensors`.
        model (`str`): The name of the model that computed them.
        logit_scale (`float`): Of that model.
        banks (`tuple[TextBank, ...]`): Where several banks have a name, the first one counts.
        logit_bias (`float`, *optional*): Of a model that was trained with a sigmoid loss.
    """

    path: str
    model: str
    logit_scale: float
    banks: tuple[TextBank, ...]
    logit_bias: float | None = None


@dataclass(frozen=True)
class Suite:
    """A suite of sets, checked.

    Args:
        name (`str`): Letters, digits, `-`, `_` and `.`.
        description (`str`): One sentence.
        labels ([`SuiteLabels`]): The labels.
        id ([`ImageSet`]): ID images with their labels.
        ood (`tuple[ImageSet, ...]`): At least one.
        fit ([`ImageSet`], *optional*): Other ID images, for methods that are fitted.
        covariate_shift (`tuple[ImageSet, ...]`, *optional*): Sets with the same labels in another style.
        reference (`str`, *optional*): An arXiv id or a citation.
        protocol (`str`, *optional*): Counts, what to watch, how to fetch the data.
        templates (`tuple[str, ...]`, *optional*): By default those of the model.
        image_size (`int`, *optional*): Pixels of the short side that all images are brought to first.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`): Each draws labels and images anew.
        methods (`tuple[str, ...]`, *optional*): By default all that the model serves.
        models (`tuple[str, ...]`, *optional*): By default the one that comes with the package.
        text_features ([`TextFeatures`], *optional*): The texts of a suite that is made of embeddings.
        negatives (`Mapping[str, Any]`, *optional*):
            Where negative labels come from, arguments of `NegativeLabels.mine` that go before those of the method. A
            `corpus` is the name of one, `"text_features"`, or a path from the data root.
        sha256 (`str`, *optional*): Digest of the file, or of the mapping, in hexadecimal.
    """

    name: str
    description: str
    labels: SuiteLabels
    id: ImageSet
    ood: tuple[ImageSet, ...]
    fit: ImageSet | None = None
    covariate_shift: tuple[ImageSet, ...] = ()
    reference: str | None = None
    protocol: str | None = None
    templates: tuple[str, ...] | None = None
    image_size: int | None = None
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    text_features: TextFeatures | None = None
    negatives: Mapping[str, Any] | None = None
    sha256: str = ""

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """All sets: ID, fit, covariate shift, OOD."""
        return (self.id, *([self.fit] if self.fit else []), *self.covariate_shift, *self.ood)


def load_suite(suite: str | os.PathLike[str] | Mapping[str, Any]) -> Suite:
    """Read a suite and check everything that can be checked without its data.

    Args:
        suite (`str`, `os.PathLike` or `Mapping`):
            The name of a ready suite, the path of a YAML file, or what such a file holds.

    Returns:
        [`Suite`]

    Raises:
        FileNotFoundError: There is no such file, or a file of labels is missing.
        ValueError:
            There is no ready suite of that name; or the suite has a key that is not known (named together with its
            place and the nearest one that is), lacks one, or gives one a value that it does not take.

    Example:

    ```python
    >>> from clipn_hf.evaluation.suite import load_suite
    >>> suite = load_suite(
    ...     {
    ...         "name": "pets",
    ...         "description": "Cats and dogs against textures.",
    ...         "labels": ["cat", "dog"],
    ...         "id": {"name": "Pets", "source": {"imagefolder": "pets/test"}},
    ...         "ood": [{"name": "Textures", "group": "far", "source": {"imagefolder": "dtd/images"}}],
    ...     }
    ... )
    >>> [one.name for one in suite.sets]
    ['Pets', 'Textures']

    ```
    """
    if isinstance(suite, Mapping):
        content = json.dumps(suite, sort_keys=True, default=str).encode()
        values, place, folder = suite, f"The suite {suite.get('name', 'given')!s}", None
    else:
        path = _find_suite(suite)
        content, values = _read_yaml(path)
        place, folder = f"The suite {path}", path.parent
    try:
        return _parse_suite(_Section(values, "", _SUITE_KEYS), folder, hashlib.sha256(content).hexdigest())
    except _SuiteError as error:
        raise ValueError(f"{place} is not valid: {error}") from error


def ready_suites() -> dict[str, str]:
    """List the suites that come with the package.

    Returns:
        `dict[str, str]`: Name and description of each, sorted by name.
    """
    return {path.stem: str(_read_yaml(path)[1].get("description", "")) for path in sorted(_SUITES.glob("*.yaml"))}


def data_hint(suite: Suite) -> str:
    """Say where to read about the data of a suite, for the end of an error message.

    Args:
        suite ([`Suite`]): The suite.

    Returns:
        `str`: A sentence, or nothing where the suite does not say.
    """
    if (_SUITES / f"{suite.name}.yaml").is_file():
        return f"What the suite needs, and where it comes from, is in {_SUITES / 'README.md'}."
    return "Where it comes from is in the `protocol` of the suite." if suite.protocol else ""


def read_names(path: str | os.PathLike[str]) -> list[tuple[str | None, str]]:
    """Read a file of class names.

    A line is a name, or what data sets call the class, a tab, and the name. Blank lines and lines that begin with `#`
    are passed over.

    Args:
        path (`str` or `os.PathLike`): The file, in UTF-8.

    Returns:
        `list[tuple[str | None, str]]`: What data sets call it, and the name, in the order of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no names, or is not UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}).") from error
    names: list[tuple[str | None, str]] = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            key, tab, name = line.partition("\t")
            names.append((key.strip(), name.strip()) if tab else (None, line.strip()))
    if not names:
        raise ValueError(f"{path} holds no names; it must have one on each line.")
    return names


def suggestion(name: str, known: Iterable[str]) -> str:
    """Word the known name nearest to a wrong one, for the end of an error message.

    Returns:
        `str`: A sentence that begins with a space, or nothing if none is near.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


class _SuiteError(ValueError):
    """What is wrong, without the name of the suite."""


class _Section:
    """A mapping of the suite together with its place, which error messages name.

    Args:
        values: What should be a mapping.
        place (`str`): Such as `"ood[2].source"`, empty for the suite itself.
        known (`Collection[str]`): The keys that it may have.
    """

    def __init__(self, values: Any, place: str, known: Collection[str]) -> None:
        if not isinstance(values, Mapping):
            raise _SuiteError(f"`{place}` must be a mapping of keys to values, got {values!r}.")
        self.values = values
        self.place = place
        for key in values:
            if key not in known:
                where = f" in `{place}`" if place else ""
                listed = ", ".join(f"`{name}`" for name in known)
                raise _SuiteError(
                    f"The key `{self.name(key)}` is not known.{suggestion(str(key), known)} "
                    f"The keys{where} are {listed}."
                )

    def name(self, key: Any) -> str:
        return f"{self.place}.{key}" if self.place else str(key)

    def has(self, key: str) -> bool:
        """Tell whether a key has a value. `key:` without one is as good as no key."""
        return self.values.get(key) is not None

    def require(self, key: str, what: str) -> Any:
        if not self.has(key):
            raise _SuiteError(f"`{self.name(key)}` is missing; give {what}.")
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.require(key, "a text")
        if not isinstance(value, str) or not value.strip():
            raise _SuiteError(f"`{self.name(key)}` must be a text, got {value!r}; put it in quotes.")
        return value.strip()

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self.has(key) else None

    def positive(self, key: str) -> int | None:
        if not self.has(key):
            return None
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _SuiteError(f"`{self.name(key)}` must be a positive integer, got {value!r}.")
        return value

    def share(self, key: str, lowest: float = 0.0) -> float | None:
        """A number that is at most 1."""
        if not self.has(key):
            return None
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= 1:
            raise _SuiteError(f"`{self.name(key)}` must be a number from {lowest:g} to 1, got {value!r}.")
        return float(value)

    def seed(self, key: str) -> int | None:
        if not self.has(key):
            return None
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _SuiteError(f"`{self.name(key)}` must be an integer that is not negative, got {value!r}.")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise _SuiteError(f"`{self.name(key)}` must be true or false, got {value!r}.")
        return bool(value)

    def list(self, key: str) -> list[Any] | None:
        """A list that is not empty."""
        if not self.has(key):
            return None
        value = self.values[key]
        if not isinstance(value, list | tuple) or not value:
            raise _SuiteError(f"`{self.name(key)}` must be a list of at least one item, got {value!r}.")
        return list(value)

    def names(self, key: str) -> tuple[str, ...] | None:
        """A list of names; YAML takes the class 7 for a number, but it is a name."""
        values = self.list(key)
        if values is None:
            return None
        return tuple(_name(value, f"{self.name(key)}[{position}]") for position, value in enumerate(values))

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of different texts."""
        values = self.list(key)
        if values is None:
            return None
        for position, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                raise _SuiteError(f"`{self.name(key)}[{position}]` must be a text, got {value!r}; put it in quotes.")
            if value in values[:position]:
                raise _SuiteError(f"`{self.name(key)}` has {value!r} twice; remove one.")
        return tuple(values)

    def mapping(self, key: str) -> Mapping[Any, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise _SuiteError(f"`{self.name(key)}` must be a mapping, got {value!r}.")
        return value or {}

    def rename(self, key: str) -> dict[str, str]:
        place = self.name(key)
        return {_name(old, place): _name(new, f"{place}.{old}") for old, new in self.mapping(key).items()}


def _name(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise _SuiteError(f"`{place}` must be a name, got {value!r}; put it in quotes.")
    return str(value)


def _find_suite(suite: str | os.PathLike[str]) -> Path:
    path = Path(suite)
    is_name = isinstance(suite, str) and path.name == suite and path.suffix not in (".yaml", ".yml")
    if is_name and (_SUITES / f"{suite}.yaml").is_file():
        return _SUITES / f"{suite}.yaml"
    if path.is_file():
        return path
    if not is_name:
        raise FileNotFoundError(f"There is no suite file {path}; check the spelling and the working directory.")
    ready = sorted(file.stem for file in _SUITES.glob("*.yaml"))
    raise ValueError(
        f"There is no ready suite {suite!r}.{suggestion(str(suite), ready)} Give one of {', '.join(ready)}, or the "
        "path of a YAML file."
    )


def _read_yaml(path: Path) -> tuple[bytes, dict[str, Any]]:
    content = path.read_bytes()
    try:
        values = read_config(path)
        _refuse_duplicates(yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The suite {path} cannot be read: {error}") from error
    return content, values


def _refuse_duplicates(node: Any) -> None:
    """Refuse keys that are there twice, of which YAML readers silently take the last."""
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise ValueError(
                        f"The key `{key.value}` is repeated in line {key.start_mark.line + 1}; keep one of them."
                    )
                keys.add(key.value)
            _refuse_duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item)


def _set_keys(kind: str) -> tuple[str, ...]:
    return (*_SET_KEYS, *_OWN_SET_KEYS.get(kind, ()))


def _known_source_keys(values: Mapping[Any, Any]) -> tuple[str, ...]:
    """The keys that a source may have: those of its kind, or all where it is of no kind or of several."""
    kinds = [kind for kind in _SOURCE_KEYS if kind in values]
    if len(kinds) == 1:
        return (kinds[0], *_SOURCE_KEYS[kinds[0]])
    return (*_SOURCE_KEYS, *dict.fromkeys(option for options in _SOURCE_KEYS.values() for option in options))


def _refuse_unknown_keys(values: Mapping[Any, Any]) -> None:
    """Refuse keys that are not known. That comes first, because a key that is missing may be one that is misspelt."""
    parts: list[tuple[Any, str, tuple[str, ...]]] = [
        (values.get("labels"), "labels", _LABEL_KEYS),
        *_set_parts(values.get("id"), "id", "id"),
        *_set_parts(values.get("fit"), "fit", "fit"),
    ]
    for key, kind in (("covariate_shift", "covariate-shift"), ("ood", "ood")):
        for place, one in _items(values, key):
            parts += _set_parts(one, place, kind)
    parts.append((values.get("negatives"), "negatives", _NEGATIVE_KEYS))
    text = values.get("text_features")
    parts.append((text, "text_features", _TEXT_KEYS))
    if isinstance(text, Mapping):
        parts += [(bank, f"text_features.{place}", _BANK_KEYS) for place, bank in _items(text, "banks")]
    for part, place, known in parts:
        # What should be a mapping and is none is refused with what it should be.
        if isinstance(part, Mapping):
            _Section(part, place, known)


def _set_parts(values: Any, place: str, kind: str) -> list[tuple[Any, str, tuple[str, ...]]]:
    if not isinstance(values, Mapping):
        return []
    source, classes = values.get("source"), values.get("classes")
    return [
        (values, place, _set_keys(kind)),
        (source, f"{place}.source", _known_source_keys(source) if isinstance(source, Mapping) else ()),
        (classes, f"{place}.classes", _CLASS_KEYS),
    ]


def _items(values: Mapping[Any, Any], key: str) -> list[tuple[str, Any]]:
    items = values.get(key)
    return [(f"{key}[{index}]", one) for index, one in enumerate(items)] if isinstance(items, list | tuple) else []


def _parse_suite(section: _Section, folder: Path | None, sha256: str) -> Suite:
    _refuse_unknown_keys(section.values)
    name = section.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise _SuiteError(f"`name` must be made of letters, digits, `-`, `_` and `.`, got {name!r}.")
    description = section.text("description")
    labels = _parse_labels(section, folder)
    id_set = _parse_set(section.require("id", "the ID set"), "id", "id")
    fit = _parse_set(section.values["fit"], "fit", "fit") if section.has("fit") else None
    shifted = section.list("covariate_shift") or []
    section.require("ood", "at least one OOD set")
    suite = Suite(
        name=name,
        description=description,
        labels=labels,
        id=id_set,
        fit=fit,
        covariate_shift=tuple(
            _parse_set(values, f"covariate_shift[{position}]", "covariate-shift")
            for position, values in enumerate(shifted)
        ),
        ood=tuple(
            _parse_set(values, f"ood[{position}]", "ood") for position, values in enumerate(section.list("ood") or [])
        ),
        reference=section.optional_text("reference"),
        protocol=section.optional_text("protocol"),
        templates=_parse_templates(section),
        image_size=section.positive("image_size"),
        seeds=_parse_seeds(section),
        methods=section.texts("methods"),
        models=section.texts("models"),
        text_features=_parse_text_features(section),
        negatives=_parse_negatives(section),
        sha256=sha256,
    )
    _check_sets(suite)
    return suite


def _check_sets(suite: Suite) -> None:
    """Check what concerns several parts of a suite."""
    seen: set[str] = set()
    for one in suite.sets:
        # Results become files, and some file systems do not tell the cases apart.
        if one.name.casefold() in seen:
            raise _SuiteError(f"Two sets are called {one.name!r}; every set needs a name of its own.")
        seen.add(one.name.casefold())
    features = [one.source.kind == "features" for one in suite.sets]
    if any(features) and not all(features):
        other = suite.sets[features.index(False)]
        raise _SuiteError(
            f"Either all sets have a source of the kind `features` or none, but that of {other.name!r} is of the kind "
            f"`{other.source.kind}`."
        )
    if any(features):
        if suite.text_features is None:
            raise _SuiteError("`text_features` is missing; sets of `features` need the embeddings of the labels.")
        for key in ("templates", "image_size", "models"):
            if getattr(suite, key) is not None:
                raise _SuiteError(f"`{key}` has no effect on `features`, which are embeddings already; remove it.")
        if suite.negatives is not None:
            if "corpus" not in suite.negatives:
                raise _SuiteError(
                    f"`negatives.corpus` is missing; the names that `features` have embeddings of are "
                    f"`{TEXT_FEATURES}`."
                )
            if "adjective_templates" in suite.negatives:
                raise _SuiteError(
                    "`negatives.adjective_templates` has no effect on `features`, which are embeddings already; "
                    "remove it."
                )
    elif suite.text_features is not None:
        raise _SuiteError("`text_features` are for sets with a source of the kind `features`; remove them.")
    elif suite.negatives is not None and suite.negatives.get("corpus") == TEXT_FEATURES:
        raise _SuiteError(
            f"`negatives.corpus` is `{TEXT_FEATURES}`, which only suites of `features` have; give one of "
            f"{', '.join(CORPORA)}, or the path of a text file."
        )


def _parse_labels(section: _Section, folder: Path | None) -> SuiteLabels:
    value = section.require("labels", "a list, or where to take them from")
    if isinstance(value, Mapping):
        own = _Section(value, "labels", _LABEL_KEYS)
        if own.has("file"):
            if own.has("from") or own.has("draw"):
                raise _SuiteError("`labels.file` stands alone; remove `from` and `draw`.")
            pairs = read_names(_find_names(own.text("file"), folder))
            names, place = [name for _, name in pairs], "labels.file"
            rename = {key: name for key, name in pairs if key is not None}
            if len(rename) not in (0, len(pairs)):
                raise _SuiteError(
                    "The file in `labels.file` must have a tab in every line or in none, and no text may stand before "
                    "two tabs."
                )
        else:
            if own.require("from", "`id`") != "id":
                raise _SuiteError(f"`labels.from` must be `id`, got {own.values['from']!r}.")
            return SuiteLabels(draw=own.positive("draw"))
    else:
        names, place, rename = section.list("labels") or [], "labels", {}
    try:
        return SuiteLabels(names=tuple(validate_labels(names, name=place)), rename=rename)
    except (TypeError, ValueError) as error:
        raise _SuiteError(str(error)) from error


def _find_names(file: str, folder: Path | None) -> Path:
    places = [*([folder] if folder else []), _FOLDER]
    for place in places:
        if (place / file).is_file():
            return place / file
    looked = " and ".join(str(place / file) for place in places)
    raise FileNotFoundError(f"`labels.file` names a file that is not there; looked for {looked}.")


def _parse_templates(section: _Section) -> tuple[str, ...] | None:
    templates = section.texts("templates")
    try:
        return None if templates is None else tuple(validate_templates(templates))
    except ValueError as error:
        raise _SuiteError(str(error)) from error


def _parse_seeds(section: _Section) -> tuple[int, ...]:
    if "seeds" not in section.values:
        return (0,)
    seeds = section.values["seeds"]
    if not isinstance(seeds, list | tuple) or not seeds:
        raise _SuiteError(f"`seeds` must be a list of at least one integer, got {seeds!r}; [0] is the default.")
    for position, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise _SuiteError(f"`seeds[{position}]` must be an integer that is not negative, got {seed!r}.")
        if seed in seeds[:position]:
            raise _SuiteError(f"`seeds` has {seed} twice; remove one.")
    return tuple(seeds)


def _parse_set(values: Any, place: str, kind: str) -> ImageSet:
    section = _Section(values, place, _set_keys(kind))
    name = section.text("name")
    group = kind
    if kind == "ood":
        group = section.require("group", " or ".join(f"`{known}`" for known in GROUPS))
        if group not in GROUPS:
            raise _SuiteError(
                f"`{section.name('group')}` must be one of {', '.join(GROUPS)}, got {group!r}."
                f"{suggestion(str(group), GROUPS)}"
            )
    source = _parse_source(section.require("source", "where its images are"), section.name("source"))
    columns = _Section(section.mapping("where"), section.name("where"), section.mapping("where"))
    where = {_name(column, columns.place): columns.names(column) or () for column in columns.values}
    if where and source.kind not in _TABLES:
        raise _SuiteError(
            f"`{section.name('where')}` filters the rows of a table ({', '.join(_TABLES)}), but the source is of the "
            f"kind `{source.kind}`; use `classes` or `rows`."
        )
    limit, per_class = section.positive("limit"), section.positive("per_class")
    if limit is not None and per_class is not None:
        raise _SuiteError(f"`{place}` has both `limit` and `per_class`; keep one.")
    classes = _Section(section.mapping("classes"), section.name("classes"), _CLASS_KEYS)
    only_labels = classes.values.get("only") == "labels"
    complement = section.flag("complement")
    if complement and only_labels:
        raise _SuiteError(f"`{place}` has both `complement` and `classes.only: labels`, which leave nothing over.")
    return ImageSet(
        name=name,
        group=group,
        source=source,
        limit=limit,
        per_class=per_class,
        rename=classes.rename("rename"),
        exclude=classes.names("exclude") or (),
        only=None if only_labels else classes.names("only"),
        only_labels=only_labels,
        where=where,
        complement=complement,
        note=section.optional_text("note") or "",
        images=section.positive("images"),
    )


def _parse_source(values: Any, place: str) -> Source:
    if not isinstance(values, Mapping):
        raise _SuiteError(f"`{place}` must be a mapping such as {{imagefolder: path}}, got {values!r}.")
    section = _Section(values, place, _known_source_keys(values))
    kinds = [kind for kind in _SOURCE_KEYS if kind in values]
    if len(kinds) != 1:
        got = " and ".join(f"`{kind}`" for kind in kinds) or "none"
        raise _SuiteError(
            f"`{place}` must have exactly one of {', '.join(f'`{kind}`' for kind in _SOURCE_KEYS)}, got {got}."
        )
    kind = kinds[0]
    path = section.text(kind)
    options: dict[str, Any] = {}
    for key in _SOURCE_KEYS[kind]:
        if key == "label_names" and isinstance(values.get(key), list | tuple):
            options[key] = section.names(key)
        elif section.has(key) or key in _REQUIRED_SOURCE_KEYS.get(kind, ()):
            options[key] = section.text(key)
    if "rows" in options and not re.fullmatch(r"-?\d*:-?\d*(:(-?[1-9]\d*)?)?", options["rows"]):
        raise _SuiteError(
            f'`{section.name("rows")}` must be a slice in quotes such as "0:250" or "::2", got {options["rows"]!r}.'
        )
    return Source(kind, path, options)


def _parse_text_features(section: _Section) -> TextFeatures | None:
    if not section.has("text_features"):
        return None
    own = _Section(section.values["text_features"], "text_features", _TEXT_KEYS)
    logit_scale = own.values.get("logit_scale", 100.0)
    if isinstance(logit_scale, bool) or not isinstance(logit_scale, int | float) or not 0 < logit_scale < float("inf"):
        raise _SuiteError(f"`text_features.logit_scale` must be a positive number, got {logit_scale!r}.")
    bias = own.values.get("logit_bias")
    if bias is not None and (isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias)):
        raise _SuiteError(f"`text_features.logit_bias` must be a finite number, got {bias!r}.")
    own.require("banks", "at least one")
    banks = []
    for position, values in enumerate(own.list("banks") or []):
        bank = _Section(values, f"text_features.banks[{position}]", _BANK_KEYS)
        names = bank.require("names", "the key of the names, or the names")
        banks.append(
            TextBank(
                embeddings=bank.text("embeddings"),
                names=bank.text("names") if isinstance(names, str) else bank.names("names") or (),
                template=_one_template(bank),
                rename=bank.rename("rename"),
            )
        )
    return TextFeatures(
        own.text("path"), own.text("model"), float(logit_scale), tuple(banks), None if bias is None else float(bias)
    )


def _parse_negatives(section: _Section) -> dict[str, Any] | None:
    if not section.has("negatives"):
        return None
    own = _Section(section.values["negatives"], "negatives", _NEGATIVE_KEYS)
    found: dict[str, Any] = {
        "corpus": own.optional_text("corpus"),
        "quantile": own.share("quantile"),
        "fraction": own.share("fraction"),
        "filters": own.texts("filters"),
        "max_similarity": own.share("max_similarity", lowest=-1),
        "max_candidates": own.positive("max_candidates"),
        "seed": own.seed("seed"),
        "adjective_templates": own.texts("adjective_templates"),
    }
    if found["fraction"] == 0:
        raise _SuiteError("`negatives.fraction` must be above 0, since with 0 nothing is mined.")
    corpus = found["corpus"]
    # What has neither a folder nor an ending is meant as a name.
    if corpus is not None and re.fullmatch(r"[\w-]+", corpus) and corpus not in (*CORPORA, TEXT_FEATURES):
        raise _SuiteError(
            f"`negatives.corpus` must be one of {', '.join((*CORPORA, TEXT_FEATURES))}, or the path of a text file "
            f"with an ending such as .txt, got {corpus!r}.{suggestion(corpus, (*CORPORA, TEXT_FEATURES))}"
        )
    for position, name in enumerate(found["filters"] or ()):
        if name not in FILTERS:
            raise _SuiteError(
                f"`negatives.filters[{position}]` must be one of {', '.join(FILTERS)}, got {name!r}."
                f"{suggestion(name, FILTERS)}"
            )
    try:
        if found["adjective_templates"] is not None:
            validate_templates(found["adjective_templates"], name="negatives.adjective_templates")
    except ValueError as error:
        raise _SuiteError(str(error)) from error
    return {key: value for key, value in found.items() if value is not None}


def _one_template(bank: _Section) -> str:
    try:
        return validate_templates([bank.text("template")], name=bank.name("template"))[0]
    except ValueError as error:
        raise _SuiteError(str(error)) from error


__all__ = [
    "GROUPS",
    "TEXT_FEATURES",
    "ImageSet",
    "Source",
    "Suite",
    "SuiteLabels",
    "TextBank",
    "TextFeatures",
    "data_hint",
    "load_suite",
    "read_names",
    "ready_suites",
    "suggestion",
]
