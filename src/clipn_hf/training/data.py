# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text pairs for training, from any set that `datasets` can read.

Everything random (the caption of an image, its crop, the template around the caption, the row that replaces a damaged
one) is drawn from (seed, epoch, row number) and from nothing else. Batches are therefore the same for any number of
worker processes, and a resumed run sees exactly the batches of an uninterrupted one.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image

from ..images import undecoded
from ..prompts import validate_templates
from .augmentation import Augmentation
from .rows import LOGGED_ROWS, RowReader, SkippedRows, UnusableRowError, row_origin

MAX_REPLACEMENTS = 100  # Unusable rows in a row after which a data set counts as broken.

_TEXT_TYPES = ("string", "large_string", "string_view")

_BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}


class ImageTextDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Image-text pairs, read and drawn anew for each epoch.

    An example is `{"image": PIL.Image.Image, "caption": str, "template_draw": float}`, with a group column also
    `"group_id": int`, and with `image_embeds` set `"image_embeds": numpy.ndarray` of shape `(dim,)` instead of
    `"image"`.

    A row whose image cannot be read or that has no caption is replaced by another one, drawn at random among the rows
    that are not in the same batch, so that every batch of every process has its full size. `skipped` has the name and
    the reason of each such row.

    Args:
        rows ([`datasets.Dataset`]): The table.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the image.
        caption_columns (`Sequence[str]`, *optional*, defaults to `("caption",)`):
            Columns that hold a caption or a list of captions. One of all captions of the row is drawn.
        group_column (`str`, *optional*): Rows with the same value are declared matches of each other.
        caption_templates (`Sequence[str]`, *optional*, defaults to `("{}",)`):
            One is drawn and filled with the caption.
        augmentation ([`Augmentation`], *optional*): Applied to each image.
        seed (`int`, *optional*, defaults to 0): Of all draws.

    Raises:
        TypeError: `rows` is not a `datasets.Dataset`.
        ValueError: A column that is not there, caption columns that hold something else than text, no rows, templates
            without exactly one `{}`, a negative seed.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        *,
        image_column: str = "image",
        caption_columns: Sequence[str] = ("caption",),
        group_column: str | None = None,
        caption_templates: Sequence[str] = ("{}",),
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(rows, datasets.Dataset):
            raise TypeError(f"`rows` must be a datasets.Dataset, got {type(rows).__name__}.")
        if len(rows) == 0:
            raise ValueError("`rows` has no rows; is the split or the filter right?")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed}.")
        self.reader = _build_reader(rows, image_column, caption_columns, group_column, caption_templates, augmentation)
        columns = list(dict.fromkeys([image_column, *self.reader.text_columns()]))
        self.rows = undecoded(rows.with_format(None).select_columns(columns), image_column)
        self.seed = seed
        self._images = self.rows.select_columns([image_column])
        self._texts = self.rows.select_columns(self.reader.text_columns())
        self._skipped = SkippedRows()
        self._image_embeds: np.ndarray | None = None
        # In shared memory: workers that outlive an epoch must see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make the draws those of an epoch; to be called before its first batch is asked for."""
        self._epoch.fill_(epoch)

    @property
    def skipped(self) -> dict[str, str]:
        """Name and reason of each row that could not be used so far."""
        return self._skipped.as_dict()

    @property
    def image_embeds(self) -> np.ndarray | None:
        """Embeddings `(rows, views, dim)` of the images, float32; while set, they stand in for the images.

        One view per row is drawn for each epoch. Rows that are not finite count as images that cannot be read.
        """
        return self._image_embeds

    @image_embeds.setter
    def image_embeds(self, value: np.ndarray | None) -> None:
        if value is not None and (value.ndim != 3 or value.shape[0] != len(self) or 0 in value.shape):
            raise ValueError(
                f"`image_embeds` must have the shape ({len(self)}, views, dim), one line per row, got {value.shape}."
            )
        self._image_embeds = value

    def skip(self, index: int, reason: str) -> None:
        """Count a row as unusable; the first ones are also logged."""
        self._skipped.add(f"row {index}", reason)

    def read_views(self, index: int, num_views: int) -> list[Image.Image]:
        """Read the image of a row as it is, or more than one augmented view of it; the same whatever the epoch is.

        Raises:
            UnusableRowError: The image cannot be read.
        """
        image = self.reader.read_image(self._images[index])
        if num_views == 1 or self.reader.augmentation is None:
            return [image] * num_views
        seeds = np.random.SeedSequence([self.seed, index]).spawn(num_views)
        return [self.reader.augmentation(image, np.random.default_rng(seed)) for seed in seeds]

    def fingerprint(self) -> str:
        """Compute a digest that changes with the rows, and with size and time of change of the files they name."""
        digest = hashlib.sha256(self.rows._fingerprint.encode())
        for path in self._image_paths():
            try:
                status = os.stat(path)
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{path}\n".encode())
        return digest.hexdigest()

    def _image_paths(self) -> Iterator[str]:
        column = self.reader.image_column
        feature = self._images.features[column]
        if isinstance(feature, datasets.Image):
            # Decided without reading a single image: a set of many gigabytes may hold them as bytes.
            if all(chunk.field("bytes").null_count == 0 for chunk in self._images.data.column(column).chunks):
                return
        elif getattr(feature, "dtype", None) != "string":
            return
        for batch in self._images.iter(1000):
            for value in batch[column]:
                path = value if isinstance(value, str) or value is None else value["path"]
                if path is not None:
                    yield path

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be copied, whole, to each worker process that is not forked.
        state = self.__dict__.copy()
        if isinstance(self._image_embeds, np.memmap) and self._image_embeds.filename is not None:
            state["_image_embeds"] = Path(self._image_embeds.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["_image_embeds"], Path):
            state = {**state, "_image_embeds": np.load(state["_image_embeds"], mmap_mode="r")}
        self.__dict__.update(state)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        indices = [int(index) for index in indices]
        table = self.rows if self._image_embeds is None else self._texts
        columns = table[indices]
        epoch = int(self._epoch)
        taken = set(indices)
        examples = []
        for position, index in enumerate(indices):
            generator = np.random.default_rng([self.seed, epoch, index])
            row = {name: column[position] for name, column in columns.items()}
            for _ in range(MAX_REPLACEMENTS):
                try:
                    examples.append(self._read(row, index, generator))
                    break
                except UnusableRowError as error:
                    self.skip(index, str(error))
                index = int(generator.integers(len(self)))
                # A pair that is twice in a batch would be taught as its own opposite.
                while index in taken and len(taken) < len(self):
                    index = int(generator.integers(len(self)))
                taken.add(index)
                row = table[index]
            else:
                raise _broken_dataset_error(self.skipped)
        return examples

    def _read(self, row: Mapping[str, Any], index: int, generator: np.random.Generator) -> dict[str, Any]:
        if self._image_embeds is None:
            return self.reader.read_example(row, generator)
        text = self.reader.read_text(row, generator)
        embedding = np.array(self._image_embeds[index, generator.integers(self._image_embeds.shape[1])])
        if not np.isfinite(embedding).all():
            raise UnusableRowError("The image could not be read when the embeddings were computed.")
        return {"image_embeds": embedding, **text}


class _StreamReader:
    """What `datasets.IterableDataset.map` calls: one row in, one example or none out."""

    def __init__(self, reader: RowReader, seed: int, skipped: SkippedRows) -> None:
        self.reader = reader
        self.seed = seed
        self.skipped = skipped
        self.failures = 0

    def __call__(self, rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        row = {name: column[0] for name, column in rows.items()}
        generator = np.random.default_rng([self.seed, indices[0]])
        keys = ["image", "caption", "template_draw", *(["group_id"] if self.reader.group_column else [])]
        try:
            example = self.reader.read_example(row, generator)
        except UnusableRowError as error:
            self.failures += 1
            self.skipped.add(_stream_row_name(row, self.reader.image_column), str(error))
            if self.failures == MAX_REPLACEMENTS:
                raise _broken_dataset_error(self.skipped.as_dict()) from error
            return {key: [] for key in keys}
        self.failures = 0
        return {key: [example[key]] for key in keys}


def load_image_text_dataset(
    source: str | os.PathLike[str] | Sequence[str],
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str = "image",
    caption_columns: Sequence[str] = ("caption",),
    group_column: str | None = None,
    filters: Mapping[str, Sequence[str]] | None = None,
    caption_templates: Sequence[str] = ("{}",),
    augmentation: Augmentation | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 2000,
    seed: int = 0,
) -> ImageTextDataset | datasets.IterableDataset:
    """Load image-text pairs from the Hub or from disk, ready for [`ImageTextCollator`].

    Args:
        source (`str`, `os.PathLike` or sequence of `str`):
            A Hub id; a folder (images with `metadata.csv` or `metadata.jsonl`, or any layout `datasets` recognises);
            or files of one kind, patterns allowed: parquet, webdataset shards (`.tar`), csv, json, jsonl, arrow.
        split (`str`, *optional*, defaults to `"train"`): The split, slices like `"train[:1%]"` included.
        config_name (`str`, *optional*): The configuration, for sets that have several.
        image_column, caption_columns, group_column, caption_templates, augmentation, seed:
            As in [`ImageTextDataset`]. Columns of webdataset shards are the file extensions, `"jpg"` and `"txt"`.
        filters (`Mapping[str, Sequence[str]]`, *optional*):
            Keeps the rows whose value in each of these columns is, as text, one of those listed.
        streaming (`bool`, *optional*, defaults to `False`):
            Read while training instead of downloading first. The result has no length and **never ends**: it starts
            over by itself, so that all processes always have a batch and `max_steps` decides. Unusable rows are left
            out. Rows come in the order of the shards, shuffled within a buffer; the order depends on the number of
            processes and workers. Have at least as many shards as processes, or each process reads all of them.
        shuffle_buffer (`int`, *optional*, defaults to 2000):
            Rows among which a stream is shuffled; few against those of the set, or rows meet themselves in a batch.

    Returns:
        [`ImageTextDataset`], or for `streaming=True` a `datasets.IterableDataset` of the same examples, with an
        attribute `skipped_rows` ([`SkippedRows`]).

    Raises:
        FileNotFoundError: A pattern or path that names nothing.
        ValueError: Files of different kinds, or of a kind that is not listed; and as [`ImageTextDataset`].

    Example:

    ```python
    >>> dataset = load_image_text_dataset(  # doctest: +SKIP
    ...     "pixparse/cc3m-wds", image_column="jpg", caption_columns=["txt"]
    ... )
    >>> dataset[0]["caption"]  # doctest: +SKIP
    'a very typical bus station'

    ```
    """
    rows = _load_rows(source, split=split, config_name=config_name, streaming=streaming)
    if not streaming:
        return ImageTextDataset(
            _filter_rows(rows, filters),
            image_column=image_column,
            caption_columns=caption_columns,
            group_column=group_column,
            caption_templates=caption_templates,
            augmentation=augmentation,
            seed=seed,
        )
    if shuffle_buffer < 1:
        raise ValueError(f"`shuffle_buffer` must be at least 1, got {shuffle_buffer}.")
    if rows.column_names is None:
        rows = rows._resolve_features()  # What `datasets` itself calls when a stream does not say its columns.
    reader = _build_reader(rows, image_column, caption_columns, group_column, caption_templates, augmentation)
    rows = _filter_rows(undecoded(rows, image_column), filters)
    skipped = SkippedRows()
    # Repeated before it is shuffled: the buffer then mixes anew in each pass.
    stream = rows.repeat(None).shuffle(seed=seed, buffer_size=shuffle_buffer)
    stream = stream.map(
        _StreamReader(reader, seed, skipped),
        batched=True,
        batch_size=1,
        with_indices=True,
        remove_columns=rows.column_names,
    )
    stream.skipped_rows = skipped
    return stream


def load_labelled_images(
    source: str | os.PathLike[str] | Sequence[str],
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    label_names: Sequence[str] | None = None,
    filters: Mapping[str, Sequence[str]] | None = None,
) -> datasets.Dataset:
    """Load images for the evaluation of OOD detection, in the columns `image` (undecoded) and `label`.

    Args:
        source, split, config_name, filters: As in [`load_image_text_dataset`].
        image_column (`str`, *optional*, defaults to `"image"`): Column of the image.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the class: a `ClassLabel`, or texts, which become one. `None` loads images alone, for OOD. Of a
            local folder with a folder for each class, those without images are classes, too, and a single one is one,
            so that whoever trains on them learns that images are missing.
        label_names (`Sequence[str]`, *optional*):
            The classes in the order of their numbers, to be passed on as `id_labels` of [`CLIPNTrainer`]. With them,
            the labels may also be mere numbers; texts get the number of their place in this list.

    Returns:
        `datasets.Dataset` with the columns `image` and, with labels, `label`: a `datasets.ClassLabel` with the names
        of the data set, or with `label_names` the numbers as they are.

    Raises:
        ValueError: A column that is not there, no rows, labels that are numbers without names, or `label_names` that
            do not cover the labels.
    """
    rows = _load_rows(source, split=split, config_name=config_name, streaming=False)
    if label_column == "label" and label_names is None:
        rows = _name_class_folders(rows, source, split)
    rows = _filter_rows(rows, filters)
    names = {image_column: "image", **({label_column: "label"} if label_column else {})}
    for column in names:
        _check_column(rows, column)
    if len(rows) == 0:
        raise ValueError(f"{source} has no rows in the split {split!r}; is the split or the filter right?")
    rows = undecoded(rows.select_columns(list(names)), image_column)
    if label_column:
        rows = _encode_labels(rows, label_column, label_names)
    return rows.rename_columns({old: new for old, new in names.items() if old != new})


def parse_filter(conditions: Sequence[str] | None) -> dict[str, list[str]]:
    """Parse conditions: `["style=noto,noto-v1"]` is `{"style": ["noto", "noto-v1"]}`.

    Args:
        conditions (`Sequence[str]`, *optional*): Of the form `column=value` or `column=value,value`.

    Returns:
        `dict[str, list[str]]`: The values that are kept, by column.

    Raises:
        ValueError: A condition without `=`.
    """
    filters: dict[str, list[str]] = {}
    for condition in conditions or []:
        column, equals, values = condition.partition("=")
        if not equals or not column:
            raise ValueError(f"A filter has the form column=value or column=value,value, got {condition!r}.")
        filters.setdefault(column.strip(), []).extend(value.strip() for value in values.split(","))
    return filters


def _encode_labels(rows: datasets.Dataset, column: str, names: Sequence[str] | None) -> datasets.Dataset:
    """Turn texts into class numbers, and check that the numbers have names."""
    feature = rows.features[column]
    kind = getattr(feature, "dtype", None) or ""
    if kind in _TEXT_TYPES:
        if names is None:
            return rows.class_encode_column(column)
        if strangers := sorted({str(value) for value in rows.unique(column)} - set(names)):
            raise ValueError(
                f"The label column {column!r} holds {strangers[0]!r}, which is none of the {len(names)} given names; "
                "give all names as they are in the column."
            )
        return rows.cast_column(column, datasets.ClassLabel(names=list(names)))
    if names is None:
        if isinstance(feature, datasets.ClassLabel):
            return rows
        raise ValueError(
            f"The label column {column!r} must hold class names, as a ClassLabel or as texts, got {feature}; give the "
            f"names as `id_labels` or `label_names`, or convert it with "
            f"`cast_column({column!r}, datasets.ClassLabel(names=…))`."
        )
    if "int" not in kind:
        raise ValueError(f"The label column {column!r} must hold class numbers or class names, got {feature}.")
    known = feature.num_classes if isinstance(feature, datasets.ClassLabel) else None
    if known not in (None, len(names)):
        raise ValueError(
            f"The label column {column!r} has {known} classes, but {len(names)} names are given; give one for each "
            "class, in the order of the class numbers."
        )
    numbers = rows.unique(column)
    if wrong := [number for number in numbers if number is None or not 0 <= number < len(names)]:
        raise ValueError(
            f"The label column {column!r} holds {wrong[0]}, but the {len(names)} given names are for the numbers from "
            f"0 to {len(names) - 1}; give one for each class."
        )
    return rows


def _name_class_folders(
    rows: datasets.Dataset, source: str | os.PathLike[str] | Sequence[str], split: str
) -> datasets.Dataset:
    """Give rows of a local folder all classes that it has folders for, of which `datasets` drops those without images,
    and a single one.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    root = Path(sources[0])
    if len(sources) != 1 or not root.is_dir():
        return rows
    # A folder for each split, or none at all
    of_split = root / split.partition("[")[0]
    folders, has_files = _list_folder(of_split if of_split.is_dir() else root)
    # Images beside the folders, a table, or folders inside of them tell that they are something else than classes.
    contents = {folder.name: _list_folder(folder) for folder in folders}
    if has_files or not folders or any(inner for inner, _ in contents.values()):
        return rows
    names = sorted(contents)
    filled = [name for name in names if contents[name][1]]
    if "label" not in rows.column_names:
        if len(filled) != 1:
            return rows
        return rows.add_column("label", [names.index(filled[0])] * len(rows), feature=datasets.ClassLabel(names=names))
    own = getattr(rows.features["label"], "names", None)
    if own is None or not {*filled} <= {*own} or {*names} <= {*own}:
        return rows
    names = sorted({*names, *own})
    numbers = [names.index(own[number]) for number in rows["label"]]
    return rows.remove_columns("label").add_column("label", numbers, feature=datasets.ClassLabel(names=names))


def _list_folder(folder: Path) -> tuple[list[Path], bool]:
    """The folders in a folder, and whether there are images or a table of them."""
    # Kinds of files without a look at each, of which there may be millions.
    with os.scandir(folder) as entries:
        shown = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith((".", "__"))]
    files = [os.path.splitext(name.lower()) for name, is_folder in shown if not is_folder]
    has_images = any(stem == "metadata" or extension in ImageFolder.EXTENSIONS for stem, extension in files)
    return [folder / name for name, is_folder in shown if is_folder], has_images


def _load_rows(
    source: str | os.PathLike[str] | Sequence[str], *, split: str, config_name: str | None, streaming: bool
) -> Any:
    sources = [os.fspath(source)] if isinstance(source, str | os.PathLike) else [os.fspath(item) for item in source]
    if not sources:
        raise ValueError("No data set is given; name a Hub id, a folder or files.")
    kinds = {_BUILDERS.get(os.path.splitext(item)[1].lower()) for item in sources}
    if kinds == {None} and len(sources) == 1:
        path = sources[0]
        if os.path.exists(path) and not os.path.isdir(path):
            raise ValueError(f"{path} is a file of an unknown kind; expected one of {', '.join(_BUILDERS)}.")
        # A leading dot or slash is a path that was mistyped, never a Hub id.
        if not os.path.exists(path) and path.startswith((".", "/", "~")):
            raise FileNotFoundError(f"There is no folder {path}; check the spelling and the working directory.")
        return datasets.load_dataset(path, config_name, split=split, streaming=streaming)
    kind = kinds.pop()
    if kinds or kind is None:
        raise ValueError(f"The files must be of one kind out of {', '.join(_BUILDERS)}, got {sources}.")
    for item in sources:
        if "://" not in item and not glob.glob(item, recursive=True):
            raise FileNotFoundError(f"No file matches {item}; check the spelling and the working directory.")
    # Local files have no splits of their own: all of them are the one that is asked for.
    name = split.partition("[")[0]
    return datasets.load_dataset(kind, config_name, data_files={name: sources}, split=split, streaming=streaming)


def _check_column(rows: Any, column: str) -> None:
    if column not in rows.column_names:
        raise ValueError(f"The data set has no column {column!r}; it has {', '.join(rows.column_names)}.")


def _check_captions(rows: Any, column: str) -> None:
    feature = (rows.features or {}).get(column)
    inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
    # Cells of a column without a type, or of JSON, are looked at when they are read.
    if inner is None or isinstance(inner, datasets.Json):
        return
    if not (isinstance(inner, datasets.Value) and inner.dtype in (*_TEXT_TYPES, "null")):
        raise ValueError(
            f"The caption column {column!r} must hold texts or lists of texts, got {feature}; name another column in "
            "`caption_columns`, or turn this one into texts with `map`."
        )


def _filter_rows(rows: Any, filters: Mapping[str, Sequence[str]] | None) -> Any:
    for column, values in (filters or {}).items():
        _check_column(rows, column)
        # A tuple: the order of a set differs between processes, and with it the fingerprint of the filtered rows.
        kept = tuple(sorted(values))
        rows = rows.filter(_is_kept, input_columns=[column], fn_kwargs={"kept": kept})
    return rows


def _is_kept(value: Any, kept: tuple[str, ...]) -> bool:
    return str(value) in kept


def _build_reader(
    rows: Any,
    image_column: str,
    caption_columns: Sequence[str],
    group_column: str | None,
    caption_templates: Sequence[str],
    augmentation: Augmentation | None,
) -> RowReader:
    if isinstance(caption_columns, str) or not caption_columns:
        raise ValueError(f"`caption_columns` must be a list of column names, got {caption_columns!r}.")
    for column in (image_column, *caption_columns, *([group_column] if group_column else [])):
        _check_column(rows, column)
    for column in caption_columns:
        _check_captions(rows, column)
    templates = tuple(validate_templates(caption_templates, name="caption_templates"))
    return RowReader(image_column, tuple(caption_columns), group_column, templates, augmentation)


def _stream_row_name(row: Mapping[str, Any], image_column: str) -> str:
    origin = row_origin(row, image_column)
    if origin:
        return f"{row['__url__']}, {origin}" if "__url__" in row else origin
    content = repr(sorted(row.items(), key=lambda item: item[0])).encode()
    return f"the row with digest {hashlib.blake2b(content, digest_size=6).hexdigest()}"


def _broken_dataset_error(skipped: Mapping[str, str]) -> RuntimeError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:LOGGED_ROWS])
    return RuntimeError(
        f"{MAX_REPLACEMENTS} rows one after the other could not be used ({reasons}). "
        "Check the names of the image and caption columns and the files they point to."
    )
