"""The compose file is one, and fits the services' real commands and metrics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.policy.command import main as policy_command
from tests.deploy.commands import addresses, parse

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
FILES = ("compose.yaml", "compose.gpu.yaml")
OURS = ("controller", "worker")


def services(file: str = "compose.yaml") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(file)["services"]
    return found


def read(file: str) -> Any:
    return yaml.safe_load((COMPOSE / file).read_text())


def ports(service: str) -> dict[str, int]:
    """Where a service listens for others, by option."""
    return {
        option: port
        for option, host, port in addresses(parse(services()[service]["command"]))
        if host == "0.0.0.0"
    }


@pytest.mark.parametrize("file", FILES)
def test_it_keeps_the_schema_of_compose(file: str) -> None:
    check = [
        str(Path(sys.executable).with_name("check-jsonschema")),
        "--builtin-schema",
        "vendor.compose-spec",
    ]
    done = subprocess.run([*check, str(COMPOSE / file)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES)
def test_every_command_and_probe_is_one_that_the_services_take(file: str) -> None:
    for name, service in services(file).items():
        if name in OURS and "command" in service:
            parse(service["command"])
    for name in OURS:
        kind, command, *words = services()[name]["healthcheck"]["test"]
        assert (kind, command) == ("CMD", "curfew")
        options = parse(words)
        assert options.address == f"127.0.0.1:{ports(name)['listen']}"


def test_services_call_one_another_where_they_listen() -> None:
    controller = parse(services()["controller"]["command"])
    assert controller.worker == [f"worker:{ports('worker')['listen']}"]
    assert controller.state.startswith("redis://redis:6379")
    collector = read("collector.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    for name in OURS:
        assert parse(services()[name]["command"]).otlp == f"otel-collector:{collector.rpartition(':')[2]}"


def test_prometheus_asks_for_metrics_where_they_are() -> None:
    config = read("prometheus.yaml")
    targets = [target for job in config["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    assert targets == [f"{name}:{ports(name)['metrics']}" for name in OURS]


def test_the_alerts_are_those_of_the_demos_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert policy_command(["alerts", str(ROOT / "demo" / "policy.yaml")]) == 0
    assert (COMPOSE / "alerts.yaml").read_text() == capsys.readouterr().out


def test_everything_that_is_mounted_is_there() -> None:
    named = read("compose.yaml")["volumes"]
    for service in services().values():
        for volume in service.get("volumes", ()):
            source = volume.replace("${CURFEW_POLICY:-../../demo}", "../../demo").split(":")[0]
            assert source in named or (COMPOSE / source).exists(), volume
    (rules,) = read("prometheus.yaml")["rule_files"]
    assert f"./alerts.yaml:{rules}:ro" in services()["prometheus"]["volumes"]
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    assert f"../grafana:{provider['options']['path']}:ro" in services()["grafana"]["volumes"]
    assert list((COMPOSE / "../grafana").glob("*.json"))


def test_the_mounted_policy_is_the_one_that_is_read() -> None:
    (volume,) = services()["controller"]["volumes"]
    assert parse(services()["controller"]["command"]).policy == Path(volume.split(":")[-2]) / "policy.yaml"


def test_ports_are_open_on_this_machine_alone() -> None:
    for service in services().values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_containers_may_do_nothing_that_they_need_not() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_images_are_pinned_by_a_version() -> None:
    for service in services().values():
        tag = service["image"].rpartition(":")[2]
        assert tag[:1].isdigit() or tag[:2].startswith("v"), service["image"]


@pytest.mark.parametrize("name", OURS)
def test_a_container_has_the_time_that_its_service_takes_to_end(name: str) -> None:
    given_s = float(services()[name]["stop_grace_period"].removesuffix("s"))
    assert given_s >= parse(services()[name]["command"]).grace_s + 5
