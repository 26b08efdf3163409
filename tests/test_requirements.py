"""The lists of packages agree with each other and with what is imported."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [line for group in PROJECT["optional-dependencies"].values() for line in group]


def parsed(lines: list[str]) -> dict[str, Requirement]:
    """By name, without comments; a line for another Python than this one is left out."""
    found = [Requirement(line) for text in lines if (line := text.partition("#")[0].strip())]
    return {
        canonicalize_name(one.name): one
        for one in found
        if one.marker is None or one.marker.evaluate()
    }


DECLARED = parsed(PROJECT["dependencies"] + EXTRAS)
DAILY = parsed((ROOT / "requirements.txt").read_text().splitlines())


def test_daily_requirements_are_the_declared_ones():
    differing = {
        name: (str(one.specifier), str(DAILY[name].specifier) if name in DAILY else None)
        for name, one in DECLARED.items()
        if name not in DAILY or DAILY[name].specifier != one.specifier
    }
    assert not differing


@pytest.mark.parametrize("end", ["oldest", "newest", "card"])
def test_both_ends_lie_within_the_ranges(end):
    pins = parsed((ROOT / f"tests/environments/{end}.txt").read_text().splitlines())
    assert {"torch", "torchvision", "triton", "transformers", "numpy"} <= pins.keys()
    outside = {
        str(pin)
        for name, pin in pins.items()
        if name in DECLARED
        for exact in pin.specifier
        if exact.version not in DECLARED[name].specifier
    }
    assert not outside


def test_the_oldest_is_where_a_range_begins():
    pins = parsed((ROOT / "tests/environments/oldest.txt").read_text().splitlines())
    first = {name: str(one.specifier).removeprefix("==") for name, one in pins.items()}
    for name in first.keys() & DECLARED.keys():
        (least,) = (one for one in DECLARED[name].specifier if one.operator in (">=", "=="))
        assert (first[name] + ".").startswith(least.version + "."), name


def test_what_is_imported_is_declared():
    imported = set()
    for file in (ROOT / "ibtrain").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "ibtrain"}
    distributions = packages_distributions()
    undeclared = {
        name
        for name in imported
        if not DECLARED.keys() & {canonicalize_name(one) for one in distributions.get(name, [name])}
    }
    assert not undeclared
