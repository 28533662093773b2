"""The manifests are what Kubernetes takes, and fit one another and the services' real commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from controller.policy import load_policy
from curfew.telemetry.controller_metrics import CONTROLLER_METRICS
from tests.deploy.commands import addresses, parse
from tests.deploy.render import Manifest, containers, name_of, pod_of, render
from tests.promql import metric_names

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> dict[tuple[str, str], Manifest]:
    return {name_of(manifest): manifest for manifest in render(KUBERNETES / "overlays" / overlay)}


def deployments(overlay: str) -> list[Manifest]:
    return [manifest for (kind, _), manifest in rendered(overlay).items() if kind == "Deployment"]


@each_overlay
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_manifest_keeps_its_schema(overlay: str) -> None:
    for manifest in rendered(overlay).values():
        if manifest["kind"] == "ScaledObject":
            jsonschema.validate(manifest, json.loads(Path(__file__).with_name("keda.json").read_text()))
        else:
            kubernetes_validate.validate(manifest, "1.32", strict=True)


@each_overlay
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_it_is_what_kubectl_makes_of_it(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {name_of(each): each for each in yaml.safe_load_all(made)} == rendered(overlay)


@each_overlay
def test_every_command_is_one_that_the_services_take(overlay: str) -> None:
    for deployment in deployments(overlay):
        for container in containers(deployment):
            parse(container["args"])
            for probe in PROBES:
                if "exec" in container[probe]:
                    name, *words = container[probe]["exec"]["command"]
                    assert name == "curfew"
                    parse(words)


@each_overlay
def test_ports_are_those_on_which_the_services_listen(overlay: str) -> None:
    for deployment in deployments(overlay):
        (container,) = containers(deployment)
        listening = {
            port: host for option, host, port in addresses(parse(container["args"])) if option != "admin"
        }
        ports = {port["containerPort"]: port["name"] for port in container["ports"]}
        assert listening == dict.fromkeys(ports, "0.0.0.0")
        # Operators' door answers to those in the pod alone.
        admin = [host for option, host, _ in addresses(parse(container["args"])) if option == "admin"]
        assert set(admin) <= {"127.0.0.1"}
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        assert ports[int(annotations["prometheus.io/port"])] == "metrics"
        for probe in PROBES:
            if "grpc" in container[probe]:
                assert "--insecure" in container["args"]
                assert container[probe]["grpc"]["port"] in ports


@each_overlay
def test_a_service_selects_pods_that_have_its_ports(overlay: str) -> None:
    for (kind, _), service in rendered(overlay).items():
        if kind == "Service":
            (deployment,) = [
                each for each in deployments(overlay) if selects(service["spec"]["selector"], each)
            ]
            names = {port["name"] for port in containers(deployment)[0]["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def selects(labels: dict[str, str], deployment: Manifest) -> bool:
    own: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels.items() <= own.items()


@each_overlay
def test_controllers_look_for_workers_under_a_name_that_exists(overlay: str) -> None:
    manifests = rendered(overlay)
    options = parse(containers(manifests["Deployment", "curfew-controller"])[0]["args"])
    name, port = options.workers_dns
    service = manifests["Service", name]
    assert service["spec"]["clusterIP"] == "None"
    assert [each["port"] for each in service["spec"]["ports"]] == [port]
    assert selects(service["spec"]["selector"], manifests["Deployment", "curfew-worker"])


@each_overlay
def test_pods_may_do_nothing_that_they_need_not(overlay: str) -> None:
    for deployment in deployments(overlay):
        pod = pod_of(deployment)
        assert pod["automountServiceAccountToken"] is False
        assert ("ServiceAccount", pod["serviceAccountName"]) in rendered(overlay)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(deployment):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@each_overlay
def test_what_is_mounted_is_there_and_what_a_command_reads_is_mounted(overlay: str) -> None:
    for deployment in deployments(overlay):
        volumes = {volume["name"]: volume for volume in pod_of(deployment)["volumes"]}
        (container,) = containers(deployment)
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == volumes.keys()
        # A file that is mounted by itself is never seen to change.
        assert not any("subPath" in mount for mount in container["volumeMounts"])
        probes = [container[probe].get("exec", {"command": ()})["command"] for probe in PROBES]
        words = [word for words in (container["args"], *probes) for word in words]
        for path in re.findall(r"=(/(?:etc|models)/[^\s=]+)", "\n".join(words)):
            assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts), path


@each_overlay
def test_the_policy_that_is_mounted_can_be_used(overlay: str, tmp_path: Path) -> None:
    manifests = rendered(overlay)
    options = parse(containers(manifests["Deployment", "curfew-controller"])[0]["args"])
    config = manifests["ConfigMap", "curfew-policy"]
    (tmp_path / "policy.yaml").write_text(config["data"][options.policy.name])
    for name in ("support", "analyst"):
        (tmp_path / name).write_text(f"key-of-{name}\n")
    assert load_policy(tmp_path / "policy.yaml", {}, tmp_path).tenants


def test_the_demo_has_the_demos_policy() -> None:
    demo = (ROOT / "demo" / "policy.yaml").read_text()
    assert rendered("cpu-demo")["ConfigMap", "curfew-policy"]["data"]["policy.yaml"] == demo


@each_overlay
def test_a_pod_has_the_time_that_its_service_takes_to_end(overlay: str) -> None:
    for deployment in deployments(overlay):
        (container,) = containers(deployment)
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = before + parse(container["args"]).grace_s
        assert pod_of(deployment)["terminationGracePeriodSeconds"] >= needed + 5


@each_overlay
def test_disruption_budgets_and_network_policies_are_of_pods_that_exist(overlay: str) -> None:
    for (kind, name), manifest in rendered(overlay).items():
        selector = {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.get(kind)
        if selector:
            labels = manifest["spec"][selector]["matchLabels"]
            assert any(selects(labels, each) for each in deployments(overlay)), name


@each_overlay
def test_network_policies_let_through_what_services_say_to_one_another(overlay: str) -> None:
    manifests = rendered(overlay)
    for name, options in {
        each["metadata"]["name"]: parse(containers(each)[0]["args"]) for each in deployments(overlay)
    }.items():
        ingress = manifests["NetworkPolicy", name]["spec"]["ingress"]
        let_in = {port["port"] for rule in ingress for port in rule["ports"]}
        assert let_in == {port for option, _, port in addresses(options) if option != "admin"}
    workers = addresses(parse(containers(manifests["Deployment", "curfew-worker"])[0]["args"]))
    (listen,) = [port for option, _, port in workers if option == "listen"]
    egress = manifests["NetworkPolicy", "curfew-controller"]["spec"]["egress"]
    assert listen in {port["port"] for rule in egress for port in rule["ports"]}


@pytest.mark.parametrize("overlay", ["a10", "h100"])
def test_workers_are_scaled_by_metrics_that_controllers_have(overlay: str) -> None:
    manifests = rendered(overlay)
    scaled = manifests["ScaledObject", "curfew-worker"]["spec"]
    assert ("Deployment", scaled["scaleTargetRef"]["name"]) in manifests
    known = {metric.name for metric in CONTROLLER_METRICS}
    for trigger in scaled["triggers"]:
        assert set(metric_names(trigger["metadata"]["query"])) <= known


@pytest.mark.parametrize("overlay", ["a10", "h100"])
def test_every_hop_is_encrypted_and_workers_take_controllers_alone(overlay: str) -> None:
    manifests = rendered(overlay)
    worker = parse(containers(manifests["Deployment", "curfew-worker"])[0]["args"])
    controller = parse(containers(manifests["Deployment", "curfew-controller"])[0]["args"])
    assert worker.tls_client_ca is not None
    assert worker.allow == ["curfew-controller"]
    assert controller.worker_cert is not None
    assert not worker.insecure
    assert not controller.insecure


@pytest.mark.parametrize(("overlay", "memory"), [("a10", "22GiB"), ("h100", "79GiB")])
def test_sizes_are_those_of_the_memory_plan(
    overlay: str, memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu.published import HYBRID_9B
    from worker.service.command import main

    (tmp_path / "config.json").write_text(json.dumps(HYBRID_9B))
    args: list[str] = containers(rendered(overlay)["Deployment", "curfew-worker"])[0]["args"]
    sizes = [
        arg for arg in args if arg.startswith(("--weights", "--slots", "--checkpoints", "--max-sequence"))
    ]
    assert len(sizes) == 4
    assert main(["--model", str(tmp_path), "--plan-memory", "--device-memory", memory, *sizes]) == 0
    assert re.search(r"^pages .*tokens of context$", capsys.readouterr().out, re.MULTILINE)
    # The file says how its sizes were found.
    told = (KUBERNETES / "overlays" / overlay / "worker.yaml").read_text().splitlines()[0]
    words = told.partition("curfew ")[2].split()
    planned: Any = parse(words)
    used: Any = parse(args)
    for option in ("weights", "slots", "checkpoints", "max_sequence_tokens"):
        assert getattr(planned, option) == getattr(used, option)
