# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Run the small ready suites, and write a page of tables for each.

    python benchmarks/suites.py --data-root ../data --output benchmarks/results/suites

The data root holds `data/` and `features/`, as src/clipn_hf/evaluation/suites/README.md says. Scores round differently
with another number of threads: the pages were made with OMP_NUM_THREADS=1.
"""

import argparse
import tempfile
from pathlib import Path

from clipn_hf import evaluate_suite
from clipn_hf.evaluation.tables import markdown_table
from clipn_hf.files import atomic_path

SUITES = (
    "emoji",
    "emoji-openmoji",
    "cifar10",
    "tiny-imagenet",
    "cifar10-features",
    "cifar10-features-fitted",
    "cifar10-features-split",
    "product-photos-features",
)


def main(names: list[str], data_root: Path, output: Path, resamples: int, reports: Path | None) -> None:
    """Write `NAME.md` for each suite, and its report and records below `reports`, if that is given."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            folder = None if reports is None else reports / name
            result = evaluate_suite(
                name, data_root=data_root, output=folder, resamples=resamples, cache_dir=temporary, num_workers=1
            )
            versions = ", ".join(f"{package} {version}" for package, version in result.records[0]["versions"].items())
            seeds = len({record["seed"] for record in result.records})
            tables = markdown_table(result.records, averages=result.averages).strip()
            page = (
                f"# {name}\n\n{result.suite.description}\n\n"
                f"```bash\nclipn-hf evaluate --config {name} --data-root DATA --resamples {resamples}\n```\n\n"
                f"{seeds} seed{'' if seeds == 1 else 's'}; {versions}.\n\n{tables}\n"
            )
            with atomic_path(output / f"{name}.md") as partial:
                partial.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"by default {', '.join(SUITES)}")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pages")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--reports", type=Path, help="also write reports, figures, records and scores there")
    arguments = parser.parse_args()
    main(
        arguments.suites or list(SUITES),
        arguments.data_root,
        arguments.output,
        arguments.resamples,
        arguments.reports,
    )
