"""What surrounds the code: workflows, containers and the release, as far as it can be read."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPO

WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))
CONTAINERS = REPO / "examples/containers"
DOCKERFILES = sorted(CONTAINERS.glob("Dockerfile.*"))
HARMLESS = {"contents": "read"}


def extras() -> set[str]:
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    return set(config["options.extras_require"])


def jobs(workflow: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(workflow.read_text())["jobs"].values())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_take_fixed_actions_and_few_permissions(workflow: Path) -> None:
    text = workflow.read_text()
    for used in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), f"{used} is not fixed by its commit"
    assert yaml.safe_load(text)["permissions"] == HARMLESS
    for job in jobs(workflow):
        assert job["timeout-minutes"]
        for step in job["steps"]:
            if "actions/checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            # What others choose, such as the title of a pull request, is no text of a command.
            assert "${{" not in step.get("run", "")
            for script in re.findall(r"\bscripts/[\w/-]+", step.get("run", "")):
                assert (REPO / script).is_file()


def test_one_action_has_one_commit() -> None:
    found = {used for path in WORKFLOWS for used in re.findall(r"uses: (\S+)", path.read_text())}
    commits: dict[str, set[str]] = {}
    for used in found:
        name, _, commit = used.partition("@")
        commits.setdefault("/".join(name.split("/")[:2]), set()).add(commit)
    assert {name: these for name, these in commits.items() if len(these) > 1} == {}


def test_only_the_release_may_identify_itself_to_others() -> None:
    may = {path.name for path in WORKFLOWS if re.search("id-token: write", path.read_text())}
    assert may == {"release.yml", "scorecard.yml"}
    release = yaml.safe_load((REPO / ".github/workflows/release.yml").read_text())["jobs"]
    assert "permissions" not in release["build"], "what builds can publish nothing"
    assert release["publish"]["environment"] == "pypi"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles(file: Path) -> None:
    text = file.read_text()
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users[-1] == "10001:10001", "it ends as nobody"
    for named in re.findall(r'"\.\[([\w,-]+)\]"', text):
        assert set(named.split(",")) <= extras()
    assert "--constraint constraints.txt" in text
    assert ("HEALTHCHECK" in text) == (file.suffix != ".build")


def test_images_get_what_the_package_is_made_of() -> None:
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    roots = {line.partition("=")[2].strip().split("/")[0] for line in config["options"]["package_dir"].split("\n")[1:]}
    assert allowed == roots | {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.cfg"}


def test_compose_names_what_is_there() -> None:
    services = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    server, prometheus = services["denseport"], services["prometheus"]
    assert (CONTAINERS / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "the server asks for no password"
    mounted = [volume.split(":")[0] for volume in prometheus["volumes"] if volume.startswith("./")]
    assert all((CONTAINERS / each).is_file() for each in mounted)
    (job,) = yaml.safe_load((CONTAINERS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["denseport:8000"]}]


def test_the_release_knows_every_extra() -> None:
    text = (REPO / "scripts/release").read_text()
    listed = [name for group in re.findall(r"^(?:small|giant)=\((.*)\)$", text, re.MULTILINE) for name in group.split()]
    assert sorted(listed) == sorted(extras())


def test_containers_are_tried_on_a_bundle_only(tmp_path: Path) -> None:
    command = [sys.executable, REPO / "scripts/hardening/containers.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "usage:" in done.stderr
