# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The subcommand `attack` of the command `clipn-hf`."""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import (
    BatchSize,
    Device,
    Labels,
    LabelsFile,
    Model,
    Negatives,
    NoTemplates,
    Settings,
    Templates,
    alternatives,
    check_device,
    check_needless,
    check_negatives,
    counted,
    first_ones,
    found_images,
    known_labels,
    labels_of_folders,
    load_detector,
    loading,
    make_detector,
    method_option,
    model_or_embedded,
    named_method,
    naming_settings,
    read_settings,
    report,
    rewording,
)
from .files import atomic_path
from .methods import METHODS, Method
from .records import READERS, printable

if TYPE_CHECKING:
    from .detector import OODDetector
    from .encoders import DualEncoder
    from .evaluation.adversarial import AdversarialImages
    from .evaluation.robustness import RobustnessReport

SMOOTHNESS = (5000.0, 0.0)
DEFENCES = ("blur", "jpeg", "resize")
# Below the help of the subcommand.
EXIT_CODES = (
    "Exit codes: 0 all images were read; 1 bad input, then --output is not written; 2 wrong usage; 3 some images "
    "could not be read, all others were used."
)


def attack(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images of unknown things: files, folders, glob patterns or http(s) addresses, in the order in which "
            "they are named. Here and in the options below, folders are searched at every depth, and what is in one "
            "or fits a pattern is sorted.",
        ),
    ],
    targets: Annotated[
        list[str],
        typer.Option(
            "--target",
            metavar="PATH",
            help="Images of known things that the others are pulled to, usually those that a detector learnt from; "
            "repeat the option for several. If they are as many as the images of PATH, the first of these is pulled "
            "to the first target, and so on; otherwise --seed deals them out.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The folder to write, new or empty. It appears when complete.")
    ],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    model: Model = None,
    method: Annotated[str | None, method_option(METHODS)] = None,
    settings: Settings = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR",
            help="Hub id or folder of a detector, such as `calibrate` writes, in place of labels, model, method, its "
            "settings and templates. Without it and without labels, images are made but not judged.",
            show_default=False,
        ),
    ] = None,
    templates: Templates = None,
    no_templates: NoTemplates = None,
    negatives: Negatives = None,
    id_images: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="PATH",
            help="Other images of known things, to measure what the detector tells apart before and after the attack, "
            "with and without defences; repeat the option for several. With fewer than 10 of them, or of PATH, there "
            "are no confidence intervals.",
            show_default=False,
        ),
    ] = None,
    fit_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Images of known things that the method is fitted on, with and without the targets; repeat the "
            "option for several. Where the method needs labels, each image lies in a folder that is called by its "
            "label.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of the optimiser.")] = 250,
    smoothness: Annotated[
        list[float] | None,
        typer.Option(
            metavar="NUMBER",
            help="Weight of the penalty on differences between neighbouring pixels; repeat the option for several "
            "attacks. 5000 is made for models that see 224 pixels; with fewer it leaves little room, take a lower "
            "one, such as 400 for 64 pixels. 0 is called patchy.",
            show_default=" and ".join(f"{each:g}" for each in SMOOTHNESS),
        ),
    ] = None,
    lr: Annotated[
        float, typer.Option("--lr", metavar="NUMBER", help="Length of a step: how much a colour in [0, 1] changes.")
    ] = 1e-3,
    init_std: Annotated[
        float,
        typer.Option(
            "--init-std", metavar="NUMBER", help="Standard deviation of the first noise, for colours in [0, 1]."
        ),
    ] = 1e-3,
    defences: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            metavar="NAME",
            help=f"{alternatives(DEFENCES)}: what is done to all images, as a defence, before they are judged; repeat "
            "the option for several. Needs --id.",
            show_default="all of them",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Draws the first noise, and deals out targets.")] = 0,
    batch_size: BatchSize = 32,
    device: Device = None,
) -> None:
    """Test a detector: change images of unknown things until its image encoder takes them for known ones.

    Writes the changed images as PNG, pictures of what was changed, and a report.
    """
    given = {
        "--method": method,
        "--setting": settings,
        "--template": templates,
        "--no-template": no_templates,
    }
    if detector is not None:
        others = {"--labels": labels, "--labels-file": labels_file, "--model": model}
        check_needless({**others, **given, "--negatives": negatives})
    elif labels is not None and labels_file is not None:
        raise typer.BadParameter("Only one of the two makes sense.", param_hint="'--labels' / '--labels-file'")
    elif labels is None and labels_file is None:
        superfluous = {
            **given,
            "--negatives": negatives,
            "--id": id_images,
            "--fit-on": fit_on,
            "--defence": defences,
        }
        if names := [name for name, value in superfluous.items() if value]:
            raise typer.BadParameter(
                f"Without labels there is nothing that judges; leave out {' and '.join(names)}, or name labels or a "
                "detector.",
                param_hint="'--labels' / '--labels-file' / '--detector'",
            )
    if defences and not id_images:
        raise typer.BadParameter(
            "Without images of known things nothing is measured; name some by --id, or leave out --defence.",
            param_hint="'--defence'",
        )
    weights = list(dict.fromkeys(smoothness or SMOOTHNESS))
    for name, number in [*(("--smoothness", weight) for weight in weights), ("--lr", lr), ("--init-std", init_std)]:
        if not (math.isfinite(number) and number >= 0) or (name == "--lr" and number == 0):
            least = "above 0" if name == "--lr" else "at least 0"
            raise ValueError(f"`{name}` must be finite and {least}, got {number:g}.")
    for defence in defences or ():
        if defence not in DEFENCES:
            raise ValueError(f"`--defence` must be one of {', '.join(DEFENCES)}, got {defence!r}.")
    _check_folder(output)
    check_negatives(negatives)
    known = known_labels(labels, labels_file) if labels is not None or labels_file is not None else None
    row = None if known is None else named_method(method, model=model)
    chosen = read_settings(row, settings) if row is not None else {}
    if row is not None:
        _check_fit_on(row, fit_on, is_fitted=False)

    ood_files, target_files = _listed(paths), _listed(targets)
    id_files = found_images(id_images, recursive=True) if id_images else []
    fit_files = found_images(fit_on, recursive=True) if fit_on else []
    unreadable = _report_unreadable([*ood_files, *target_files, *id_files, *fit_files])
    ood_files, target_files, unpaired = _pairs(ood_files, target_files, unreadable)
    id_files, fit_files = _readable(id_files, unreadable), _readable(fit_files, unreadable)
    check_device(device)

    judge: OODDetector | None = None
    if detector is not None:
        judge = load_detector(detector, device)
        _check_fit_on(judge.method, fit_on, is_fitted=judge.fitted_on is not None)
    elif row is not None and known is not None:
        judge = make_detector(
            model,
            known,
            row,
            chosen,
            templates=templates,
            no_templates=no_templates,
            negatives=negatives,
            device=device,
        )
    if judge is None:
        from .encoders import DualEncoder

        with loading(model):
            encoder = DualEncoder.from_pretrained(model_or_embedded(model), device=device)
    else:
        encoder = judge.image_encoder

    attacking: dict[str, Any] = {
        "steps": steps,
        "lr": lr,
        "init_std": init_std,
        "batch_size": batch_size,
        "seed": seed,
    }
    words = {
        "`dtype=torch.float32`": "weights in float32",
        "`id_images`": "--id",
        "`ood_images`": "PATH",
        "`images`": "PATH",
        "`fit_images`": "--fit-on",
        "pass them as `target_labels`": "put each into a folder that is called by its label",
        "`targets`": "--target",
        "`seed`": "--seed",
    }
    with rewording(words), naming_settings(chosen):
        found: RobustnessReport | None = None
        scores: dict[str, Sequence[float]] = {}
        about = None
        if judge is not None and id_files:
            found = _measure(
                judge, id_files, ood_files, target_files, fit_files, weights, defences or DEFENCES, attacking
            )
            attacks = found.attacks
            scores = _scores_of(found)
            bank = found.rows[0].bank
            about = judge.method.name + ("" if bank is None else f", {bank}")
        else:
            from .evaluation.adversarial import adversarial_ood
            from .evaluation.robustness import saying_once

            if judge is not None and fit_files:
                needs_labels = "training_labels" in judge.method.needs
                fit_labels = labels_of_folders(fit_files, judge.labels) if needs_labels else None
                # Before the attack, so that what cannot be fitted costs no time.
                judge = judge.with_changes(threshold=None).fit(fit_files, fit_labels, batch_size=batch_size)
            with saying_once():
                attacks = [
                    adversarial_ood(ood_files, target_files, encoder, smoothness=weight, **attacking)
                    for weight in weights
                ]
            if judge is not None:
                scores = {"": judge.score(ood_files, batch_size).tolist()}
                scores |= {one.name: judge.score(one.to_pil(), batch_size).tolist() for one in attacks}
                about = judge.method.name
    with atomic_path(output) as partial:
        partial.mkdir()
        _write(partial, attacks, ood_files, target_files, encoder, judge, scores, about, found)
    for one in attacks:
        print(_summary(one, found))
    print(printable(f"Written to {output}; the report is {output / 'report.md'}"))
    if unreadable:
        more = f", and {counted(unpaired, 'image')} paired with such" if unpaired else ""
        report(f"Left out: {counted(len(unreadable), 'image')} that could not be read{more}")
        raise typer.Exit(3)


def _measure(
    judge: "OODDetector",
    id_files: Sequence[str],
    ood_files: Sequence[str],
    target_files: Sequence[str],
    fit_files: Sequence[str],
    weights: Sequence[float],
    defences: Sequence[str],
    attacking: Mapping[str, Any],
) -> "RobustnessReport":
    """Attack, and measure what is left of a detector."""
    from .evaluation.robustness import evaluate_robustness

    fit_labels = target_labels = None
    if fit_files and judge.method.fit is not None:
        if "training_labels" in judge.method.needs:
            fit_labels = labels_of_folders(fit_files, judge.labels)
        else:
            # To warn of labels that are left without images.
            fit_labels = _folders_called_by(judge.labels, fit_files)
        # Those that are among the images to fit on need none.
        target_labels = _folders_called_by(judge.labels, target_files)
    return evaluate_robustness(
        judge,
        id_files,
        ood_files,
        target_files,
        fit_images=fit_files or None,
        fit_labels=fit_labels,
        target_labels=target_labels,
        smoothness=weights,
        defences=defences,
        **attacking,
    )


def _folders_called_by(labels: Sequence[str], files: Sequence[str]) -> list[str] | None:
    """The names of the folders of images, if all are labels."""
    folders = [Path(file).resolve().parent.name for file in files]
    return folders if {*folders} <= {*labels} else None


def _scores_of(found: "RobustnessReport") -> dict[str, Sequence[float]]:
    """OOD-ness of the images before, by no name, and after each attack, by its name."""
    from .evaluation.robustness import CLEAN

    after = {one.name: found.row(one.name).ood_scores.tolist() for one in found.attacks}
    return {"": found.row(CLEAN).ood_scores.tolist(), **after}


def _pairs(
    ood_files: Sequence[str], target_files: Sequence[str], unreadable: Collection[str]
) -> tuple[list[str], list[str], int]:
    """Leave out images that cannot be read, and those paired with them, which are counted."""
    ood, targets = _readable(ood_files, unreadable), _readable(target_files, unreadable)
    if len(ood_files) != len(target_files):
        return ood, targets, 0
    # An image whose target cannot be read must not be pulled to that of another one.
    pairs = list(zip(ood_files, target_files, strict=True))
    kept = [pair for pair in pairs if {*unreadable}.isdisjoint(pair)]
    if not kept:
        raise ValueError(f"Of none of {counted(len(pairs), 'pair')} of image and target both can be read.")
    unpaired = len(ood) + len(targets) - 2 * len(kept)
    return [one for one, _ in kept], [target for _, target in kept], unpaired


def _check_folder(output: Path) -> None:
    """Find out what would only fail at the end."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output {output} is a file; name a folder.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"The output {output} has files already; name a new or empty folder.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"The folder of the output {output} does not exist; make it first.")


def _check_fit_on(row: Method, fit_on: Sequence[str] | None, is_fitted: bool) -> None:
    if row.fit is None and fit_on:
        raise ValueError(f"Method {row.name} learns nothing from images; leave out --fit-on.")
    if row.fit is not None and not fit_on and not is_fitted:
        raise ValueError(f"Method {row.name} is fitted on images; name some by --fit-on.")


def _listed(paths: Sequence[str]) -> list[str]:
    """Find images in the order in which they were named, as often as they were named; at least one."""
    from .images import find_images

    files = [file for path in paths for file in find_images([path], recursive=True)]
    if not files:
        raise ValueError(f"There are no images in {', '.join(paths)}.")
    return files


def _report_unreadable(files: Sequence[str]) -> set[str]:
    """Try to read images, and report those that cannot be read."""
    from .images import ImageError, load_image

    def try_out(file: str) -> ImageError | None:
        try:
            load_image(file)
        except ImageError as error:
            return error
        return None

    distinct = list(dict.fromkeys(files))
    with ThreadPoolExecutor(READERS) as pool:
        errors = dict(zip(distinct, pool.map(try_out, distinct), strict=True))
    for file, error in errors.items():
        if error is not None:
            report(f"{file}: {error.reason}")
    return {file for file, error in errors.items() if error is not None}


def _readable(files: Sequence[str], unreadable: Collection[str]) -> list[str]:
    """Select the images that can be read, at least one if there are any."""
    readable = [file for file in files if file not in unreadable]
    if files and not readable:
        what = "The only image cannot" if len(files) == 1 else f"None of {len(files):,} images can"
        raise ValueError(f"{what} be read: {first_ones(files)}.")
    return readable


def _write(
    folder: Path,
    attacks: Sequence["AdversarialImages"],
    ood_files: Sequence[str],
    target_files: Sequence[str],
    encoder: "DualEncoder",
    judge: "OODDetector | None",
    scores: dict[str, Sequence[float]],
    about: str | None,
    found: "RobustnessReport | None",
) -> None:
    """Write images, pictures and the report."""
    from .evaluation.adversarial_pictures import MAX_ROWS, draw_similarities, side_by_side
    from .evaluation.provenance import describe_encoder, list_versions
    from .evaluation.results import slug
    from .evaluation.robustness import describe_attacks, describe_detector, describe_in_words, name_model

    model = describe_encoder(encoder)
    name_of_model = name_model(model)
    records = []
    pictures = []
    for one in attacks:
        (folder / one.name).mkdir()
        names = [f"{one.name}/{index:04}_{slug(Path(file).stem)}.png" for index, file in enumerate(ood_files)]
        for name, picture in zip(names, one.to_pil(), strict=True):
            picture.save(folder / name)
        records += list(_records(one, names, ood_files, target_files, scores))
        title = f"{one.name} attack on {name_of_model}" + ("" if about is None else f"; scores of {about}")
        sheet = side_by_side(one, (scores[""], scores[one.name]) if scores else None, title=title)
        sheet.save(folder / f"{one.name}.png")
        pictures.append(f"{one.name}.png")
    with contextlib.suppress(ImportError):
        draw_similarities(attacks).savefig(folder / "similarities.png", metadata={"Software": None})
        pictures.append("similarities.png")
    if "similarities.png" not in pictures:
        report('There is no plot of similarities, because matplotlib is missing: pip install "clipn-hf[benchmarks]".')
    if found is not None:
        content, text = found.to_dict(), found.to_markdown()
    else:
        what = {"model": model} if judge is None else {"detector": describe_detector(judge)}
        content = {**what, "attacks": [one.summarize() for one in attacks], "versions": list_versions()}
        words = (
            f"Model {name_of_model}, {model['dtype']}." if judge is None else describe_in_words(content["detector"])
        )
        text = f"{words}\n\n{describe_attacks(attacks)}\n"
    more = f" The first {MAX_ROWS} images are drawn." if len(ood_files) > MAX_ROWS else ""
    drawn = "\n\n".join(f"![{Path(name).stem}]({name})" for name in pictures)
    note = (
        "Cosines are those with the targets; they and the norms are means over images. Scores are those of the "
        f"detector, higher = more OOD.{more}"
        if scores
        else f"Cosines are those with the targets; they and the norms are means over images.{more}"
    )
    (folder / "report.md").write_text(
        f"# Adversarial OOD images\n\n{text}\n{note}\n\n{drawn}\n", encoding="utf-8", newline="\n"
    )
    (folder / "report.json").write_text(
        json.dumps({**content, "adversarial_images": records}, indent=1) + "\n", encoding="utf-8", newline="\n"
    )


def _records(
    one: "AdversarialImages",
    names: Sequence[str],
    ood_files: Sequence[str],
    target_files: Sequence[str],
    scores: dict[str, Sequence[float]],
) -> Iterator[dict[str, Any]]:
    """What became of each image."""
    target_rows, l2, linf = one.target_rows.tolist(), one.l2.tolist(), one.linf.tolist()
    for index, (name, file) in enumerate(zip(names, ood_files, strict=True)):
        record = {
            "file": file,
            "target": target_files[target_rows[index]],
            "attack": one.name,
            "adversarial": name,
            "start_similarity": float(one.original_similarities[index]),
            "similarity": float(one.similarities[-1, index]),
            "saved_similarity": float(one.saved_similarities[index]),
            "l2": l2[index],
            "linf": linf[index],
        }
        if scores:
            record |= {"score": scores[""][index], "adversarial_score": scores[one.name][index]}
        yield record


def _summary(one: "AdversarialImages", found: "RobustnessReport | None") -> str:
    facts = one.summarize()
    line = (
        f"{one.name}: {counted(len(one), 'image')}, cosine with the target {facts['start_similarity']:.3f} -> "
        f"{facts['saved_similarity']:.3f}"
    )
    if found is None:
        return line
    before, after = (100 * found.row(*attack).auroc.estimate for attack in ((), (one.name,)))
    bank = found.rows[0].bank
    return f"{line}, AUROC {before:.1f} % -> {after:.1f} %" + ("" if bank is None else f" ({bank})")


__all__ = ["EXIT_CODES", "attack"]
