"""What is installed and where it is tested: requirements.txt, constraints.txt and the workflow agree."""
import re

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from plumbing.story import ROOT


def requirements(name):
    """{package: specifiers} of a file that pip reads."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {found.name: found.specifier for found in map(Requirement, lines)}


def test_constraints_are_one_version_of_each_requirement():
    ranges, pins = requirements("requirements.txt"), requirements("constraints.txt")
    assert list(pins) == list(ranges)
    for name, pin in pins.items():
        (exact,) = pin
        assert exact.operator == "==" and exact.version in ranges[name], name


def test_a_pytorch_that_is_there_stays():
    """pip replaces what is installed only if it is outside its range: these are what CUDA and CPU builds are called."""
    ranges = requirements("requirements.txt")
    assert all(one.operator == ">=" for specifiers in ranges.values() for one in specifiers)
    builds = {"torch": ("2.6.0+cu124", "2.14.1+cpu"), "torchvision": ("0.21.0+cu124", "0.29.1+cpu")}
    for name, versions in builds.items():
        assert all(Version(version) in ranges[name] for version in versions)
    assert Version("2.14.1+cpu") in requirements("constraints.txt")["torch"]


def test_the_workflow_runs_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    quick = re.search(r"\.venv/bin/(pytest tests -k \".*?\")", readme)[1]
    assert commands == {"all": ["bash .ci/run"],
                        "quick": ["python -m pip install -r requirements.txt", f"python -m {quick}"]}
    oldest = re.search(r"Python (3\.\d+) or newer", readme)[1]
    assert all(min(job["strategy"]["matrix"]["python"], key=Version) == oldest for job in jobs.values())
