# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Fetch the common tests of the installed transformers into `tests/.transformers/VERSION/`, which git ignores.

They are in the source distribution of transformers, not in the wheel, and are written for its own source tree: the few
modules they import from there are replaced by stand-ins. `tests/transformers_common` runs them on the classes of this
package, and skips where they are absent. Does nothing when the files are already there; exits with 1 and a message
when they cannot be had.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

FOLDER = Path(__file__).parent / ".transformers"
COMMON_TESTS = ("test_modeling_common.py", "test_configuration_common.py", "test_processing_common.py")
STAND_INS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def download_source(version: str, folder: Path) -> Path:
    """Let pip put the source distribution of transformers into `folder`, and return the archive."""
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        # environments made by uv have no pip, and uv cannot download without installing
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run(
        [
            *(python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"),
        ],
        check=True,
        timeout=600,
    )
    return next(folder.glob("transformers-*.tar.gz"))


def extract_common_tests(archive: Path, folder: Path) -> None:
    """Write the common tests of `archive`, and the stand-ins they need, into `folder`."""
    for name, content in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    with tarfile.open(archive) as source:
        root = archive.name.removesuffix(".tar.gz")
        for name in COMMON_TESTS:
            member = source.extractfile(f"{root}/tests/{name}")
            assert member is not None, f"{name} is a folder in {archive.name}"
            (folder / "transformers_tests" / name).write_bytes(member.read())


def main() -> int:
    version = importlib.metadata.version("transformers")
    target = FOLDER / version
    if target.is_dir():
        return 0
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        try:
            archive = download_source(version, Path(scratch))
            extract_common_tests(archive, Path(scratch) / "tests")
        except (subprocess.SubprocessError, OSError, KeyError, StopIteration) as error:
            print(
                f"The common tests of transformers {version} could not be fetched ({error!r}); "
                f"tests/transformers_common will be skipped. They are part of its source distribution: "
                f"check that `pip download --no-deps --no-binary transformers transformers=={version}` works.",
                file=sys.stderr,
            )
            return 1
        shutil.move(Path(scratch) / "tests", target)
    print(f"Fetched the common tests of transformers {version} into {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
