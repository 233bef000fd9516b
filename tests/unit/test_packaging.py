"""The two ways to install give the same versions, and the package holds all that it needs."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

REPO = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((REPO / "environment.yml").read_text())
PINNED = [
    *PROJECT["dependencies"],
    *(pin for pins in PROJECT["optional-dependencies"].values() for pin in pins),
]


def test_conda_environment_repeats_the_pinned_versions():
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted(PROJECT["dependencies"])
    assert f"python{PROJECT['requires-python']}" in CONDA["dependencies"]


@pytest.mark.parametrize("pin", PINNED)
def test_dependencies_are_pinned_to_one_version(pin):
    (specifier,) = Requirement(pin).specifier
    assert specifier.operator == "=="
    assert "*" not in specifier.version


@pytest.mark.parametrize(
    "pin", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
)
def test_installed_versions_are_the_pinned_ones(pin):
    requirement = Requirement(pin)
    assert requirement.specifier.contains(metadata.version(requirement.name))


def test_templates_are_package_data():
    import kvbudget.paper

    (package,) = kvbudget.paper.__path__
    assert list((Path(package) / "templates").glob("*.j2"))
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert patterns["package-data"] == {
        "kvbudget": ["**/templates/*", "study/*.yaml", "shipped/*.json.gz"]
    }


@pytest.mark.parametrize("name", ["measuring", "paper"])
def test_environments_of_jobs_repeat_the_pinned_versions(name):
    environment = yaml.safe_load((REPO / f"workflow/envs/{name}.yaml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip and set(pip) <= set(PROJECT["dependencies"])


def test_both_ways_to_install_the_peers_give_the_same_versions():
    environment = yaml.safe_load((REPO / "workflow/envs/peers.yaml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    lines = (REPO / "workflow/envs/peers.txt").read_text().splitlines()
    assert pip == [line for line in lines if not line.startswith("#")]
    assert {f"torch=={metadata.version('torch').split('+')[0]}"} <= set(pip)
