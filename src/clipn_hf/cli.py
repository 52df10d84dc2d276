# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `clipn-hf`.

What a subcommand needs beyond the package itself is imported when it runs.
"""

import importlib.metadata
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import cli_attack, cli_calibration, cli_detection, cli_explain, cli_negatives
from .cli_attack import attack
from .cli_cache import cache_app
from .cli_calibration import calibrate
from .cli_checkpoints import convert, info
from .cli_detection import detect
from .cli_evaluation import compare, evaluate
from .cli_explain import explain
from .cli_negatives import mine
from .cli_options import PICTURE_EXTENSIONS, check_output, loading, report, show_warning
from .files import atomic_path
from .methods import METHODS, Method

NEED_WORDS = {
    "no": "CLIPN",
    "sigmoid": "SigLIP",
    "text_encoder": "text encoder",
    "negatives": "negative labels",
    "training": "ID images",
    "training_labels": "ID images with labels",
    "pixels": "images, not embeddings",
    "patches": "patches of images, not embeddings",
    "unknown": 'a trained "unknown" prompt',
}

app = typer.Typer(
    help="Tell images of known things from images of anything else, with CLIP, CLIPN, SigLIP and the like.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process.

    Args:
        arguments (`Sequence[str]`, *optional*): What follows the name of the command; by default that of the process.

    Raises:
        SystemExit: Always. Its code is 0 for success, 1 for bad input, 2 for wrong usage, 3 if some images could not
            be read.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not fit the encoding of the terminal.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        # Pillow warns of large pictures and odd metadata, about which there is nothing to do here.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.showwarning = show_warning
        try:
            app(args=arguments, prog_name="clipn-hf")
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            report(f"Error: {error}")
            sys.exit(1)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"clipn-hf {importlib.metadata.version('clipn-hf')}")
        raise typer.Exit


@app.callback()
def _common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def show_methods() -> None:
    """Show the methods: what they need, which paper they are of, and their settings."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "name in full", "needs", "rule", "arXiv", "settings"):
        table.add_column(heading, no_wrap=heading in ("method", "arXiv"))
    for row in METHODS.values():
        table.add_row(
            row.name,
            row.title,
            _readable_needs(row),
            "yes" if row.is_ood else "",
            row.reference,
            ", ".join(f"{name}={_as_given(value)}" for name, value in row.settings.items()),
        )
    # What is not shown on a terminal need not fit one.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    print(
        "\nrule: decides without a threshold. All others give a verdict once they are calibrated (clipn-hf calibrate)."
        "\nnegative labels: mined from WordNet for the labels, unless --negatives names others (clipn-hf mine)."
        "\nnull: found by the method. num_groups=null makes groups of at least 100 negative labels, and 100 groups at "
        "most; num_clusters=null makes as many clusters as there are labels; principal_dims=null takes 512 dimensions "
        "of 768 or more, 1000 of 2048 or more, and half of fewer. shrinkage=null is estimated from the images. "
        "min_confidence=null keeps all images."
    )


def _as_given(value: Any) -> str:
    """Write the value of a setting as `--setting` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _readable_needs(method: Method) -> str:
    needs = set(method.needs)
    if "training_labels" in needs:
        needs.discard("training")
    return ", ".join(words for need, words in NEED_WORDS.items() if need in needs) or "any model"


def demo(
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture to write, .png or .jpg.")] = Path(
        "clipn-hf-demo.png"
    ),
) -> None:
    """Judge the sample pictures with the embedded checkpoint, in a table and a contact sheet. Needs no network."""
    check_output(output, PICTURE_EXTENSIONS)

    from .demo import demo_sheet, demo_table, judge_samples
    from .encoders import EMBEDDED_CHECKPOINT

    with loading(EMBEDDED_CHECKPOINT):
        samples = judge_samples()
    Console(highlight=False).print(demo_table(samples))
    with atomic_path(output) as partial:
        demo_sheet(samples).save(partial)
    print(f"The same as a picture: {output.resolve()}")


# In the order of the help.
app.command(no_args_is_help=True, epilog=cli_detection.EXIT_CODES)(detect)
app.command(no_args_is_help=True, epilog=cli_explain.EXIT_CODES)(explain)
app.command(no_args_is_help=True, epilog=cli_calibration.EXIT_CODES)(calibrate)
app.command(no_args_is_help=True, epilog=cli_negatives.EXAMPLE)(mine)
app.command(no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True, epilog=cli_attack.EXIT_CODES)(attack)
app.command("methods")(show_methods)
app.command()(info)
app.command(no_args_is_help=True)(convert)
app.command()(demo)
app.add_typer(cache_app, name="cache")

__all__ = ["app", "main"]
