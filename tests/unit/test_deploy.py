"""The files in deploy/: they parse, name options, routes and metrics that exist, and run nothing as root."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from radixlm.config import Config, flag
from radixlm.metrics import ENGINE_METRICS, Metrics
from tests.http.harness import Server, with_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
YAML = sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])


def known_metrics() -> set[str]:
    found = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    found |= {f"{family.name}_total" for family in Metrics().registry.collect() if family.type == "counter"}
    kinds = {"counter": "_total", "gauge": ""}
    return found | {f"radixlm_engine_{name}{kinds[kind]}" for name, (kind, _) in ENGINE_METRICS.items()}


def manifests() -> dict[str, dict]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "radixlm.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_is_yaml(path):
    assert all(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.parametrize("path", [DEPLOY / "grafana" / "radixlm.json", DEPLOY / "prometheus" / "alerts.yml"], ids=str)
def test_dashboards_and_alerts_ask_for_metrics_that_exist(path):
    named = {re.sub(r"_bucket$", "_count", name) for name in re.findall(r"radixlm_\w+", path.read_text())}
    assert named
    assert named <= known_metrics(), named - known_metrics()


def test_the_page_on_operations_names_every_metric_of_a_frontend():
    page = (ROOT / "docs" / "operations.md").read_text()
    for family in Metrics().registry.collect():
        assert f"`{family.name}" in page, family.name


def test_the_dashboard_has_no_two_panels_in_one_place():
    panels = json.loads((DEPLOY / "grafana" / "radixlm.json").read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})


def test_every_option_that_is_named_exists():
    known = {spec.name for spec in fields(Config)}
    for path in (path for path in DEPLOY.rglob("*") if path.is_file()):
        text = path.read_text()
        named = {name.lower() for name in re.findall(r"\bRADIXLM_([A-Z_]+)\b", text)}
        assert named <= known, path
        flags = set(re.findall(r"(?<=[\s\",\[])--([a-z][a-z-]+)(?=[\s\",])", text)) if path.suffix == ".yaml" else set()
        assert {name for name in flags if not name.startswith(("config.", "storage."))} <= {flag(n) for n in known}, (
            path
        )


def test_the_image_runs_as_nobody_in_particular_and_pins_its_base():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    by_name = dict(steps)
    assert by_name["USER"] not in ("root", "0")
    assert all(
        re.search(r":[\w.-]+", value.split()[0]) and "latest" not in value for name, value in steps if name == "FROM"
    )
    assert all(value.startswith("[") for name, value in steps if name in ("CMD", "ENTRYPOINT"))
    apt = [value for name, value in steps if name == "RUN" and "apt-get install" in value]
    assert all("--no-install-recommends" in value and "rm -rf /var/lib/apt/lists" in value for value in apt)
    assert not [name for name, _ in steps if name in ("ADD", "MAINTAINER")]
    for name, value in steps:
        for source in value.split()[:-1] if name == "COPY" and not value.startswith("--from") else []:
            assert (ROOT / source).exists(), source


def test_the_cluster_probes_public_routes_and_waits_for_the_drain():
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    async def public(server: Server) -> set[str]:
        return {row.path for row in server.app.state.rows if row.scope == "public"}

    probes = {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes <= with_server(public)
    drain = int(container["args"][container["args"].index("--drain-timeout") + 1])
    assert pod["terminationGracePeriodSeconds"] > drain + 5
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = found[kind]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == labels
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_unit_waits_for_the_drain_and_gives_up_its_rights():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "systemd" / "radixlm.service")
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) > Config().drain_timeout
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    if shutil.which("systemd-analyze"):
        run = ["systemd-analyze", "verify", str(DEPLOY / "systemd" / "radixlm.service")]
        said = subprocess.run(run, capture_output=True, text=True, check=False).stderr
        assert "Unknown" not in said, said
