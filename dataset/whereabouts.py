"""What is said of a data set that is not there: where there is one of the same path, and what builds it."""

import shlex
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]

# By the names that config files have; the others are built as at full size.
FULL_SIZE = "--subsets training evaluation --test-set-name evaluation --num-aug 1000 --seed 42"
OPTIONS = {
    "arc1-demo": "--subsets training evaluation --test-set-name evaluation --num-aug 1 --max-side 10 --seed 42",
    "arc1-small": "--subsets training evaluation --test-set-name evaluation --num-aug 0 --max-side 10 --seed 42",
    "arc-small": (
        "--subsets training training2 evaluation evaluation2 --test-set-name evaluation evaluation2 "
        "--num-aug 1000 --max-side 10 --seed 42"
    ),
    "arc1concept-encoder-aug-1000": (
        "--num-aug 1000 --seed 42 --subsets training evaluation concept --test-set-name evaluation "
        "--input-file-prefix DIR/arc-agi"
    ),
}
OTHER_BUILDERS = {
    "rearc": "build_rearc --output-dir {} --pairs 150 --max-side 10 --seed 0",
    "known_rules": "build_known_rules --output-dir {} --sides 3 6 --colors 9 --train 300 --held-out 600 --seed 0",
    "permutations": (
        "build_known_rules --output-dir {} --families permutation --sides 3 6 --train 20 --held-out 256 --seed 0"
    ),
    "dihedral": "build_known_rules --output-dir {} --families dihedral --sides 3 6 --train 20 --held-out 256 --seed 0",
    "spatial_rules": (
        "build_known_rules --output-dir {} --families scale tile mirror fill outline --sides 3 6 "
        "--train 20 --held-out 256 --seed 0"
    ),
    "first_lesson": (
        "build_known_rules --output-dir {} --families permutation --sides 3 3 --colors 5 "
        "--train 4 --held-out 256 --seed 0"
    ),
    "first_spatial_lesson": (
        "build_known_rules --output-dir {} --families dihedral --sides 2 3 --demos 2 3 --distinct "
        "--train 4 --held-out 256 --seed 0"
    ),
}


def build_command(folder: Path) -> str:
    """The command that builds a data set in a folder."""
    if folder.name == "rearc-generators":  # which is built with the other
        folder = folder.with_name("rearc")
    if folder.name in OTHER_BUILDERS:
        return f"python -m dataset.{OTHER_BUILDERS[folder.name].format(shlex.quote(str(folder)))}"
    where = shlex.quote(str(folder))
    options = OPTIONS.get(folder.name, FULL_SIZE)
    return f"python -m dataset.build_arc_dataset --output-dir {where} {options}"


def looked_at(folder: Path, file: str) -> str:
    """Which folder a relative path has meant, and where there is a data set of that path; nothing for an absolute one.

    Args:
        file: that a data set has.
    """
    if folder.is_absolute():
        return ""
    return f" in {Path.cwd()}: {Path.cwd() / folder}{elsewhere(folder, file)}"


def elsewhere(folder: Path, file: str) -> str:
    """Where there is a data set of the same relative path: in the checkout, or above the working directory."""
    bases = [] if folder.is_absolute() else [CHECKOUT, *Path.cwd().parents]
    there = next((base / folder for base in bases if (base / folder / file).exists()), None)
    return f"; there is one at {there}" if there else ""
