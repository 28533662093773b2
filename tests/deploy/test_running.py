"""The manifests' commands, run for real: TLS on every hop, the probes say yes and a caller is answered."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from curfew import AsyncClient, Tls
from curfew.processes import Service, start_service
from tests.certificates import Authority
from tests.deploy.render import Manifest, containers, name_of, render

ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "a10"
OF_A_GPU = ("--device", "--weights", "--slots", "--checkpoints", "--max-sequence-tokens")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def moved(words: list[str], places: Mapping[str, str]) -> list[str]:
    """A command's words for this machine: other directories, any free port of loopback."""
    text = "\n".join(words)
    for place, other in places.items():
        text = text.replace(place, other)
    text = re.sub(r"=(?:0\.0\.0\.0|127\.0\.0\.1):\d+$", "=127.0.0.1:0", text, flags=re.MULTILINE)
    return text.split("\n")


def mount(directory: Path, authority: Authority, name: str) -> str:
    """The secret of a service's certificate, as it is mounted."""
    identity = authority.issue(name)
    directory.mkdir()
    for file, source in (("tls.crt", identity.cert), ("tls.key", identity.key), ("ca.crt", identity.ca)):
        (directory / file).write_bytes(source.read_bytes())
    return str(directory)


async def probes(container: Manifest, service: Service, places: Mapping[str, str]) -> dict[str, int]:
    """Exit status of each probe, asked where the service really listens."""
    doors = {"7200": "listen", "7201": "admin", "7210": "listen"}
    statuses = {}
    for probe in PROBES:
        _, _, address, *words = container[probe]["exec"]["command"]
        where = service.addresses[doors[address.rpartition(":")[2]]]
        environ = {
            each["name"]: places["/etc/curfew/tls"] + "/ca.crt"
            for each in container.get("env", ())
            if each["name"] == "CURFEW_CA"
        }
        command = [str(Path(sys.executable).with_name("curfew")), "health", where, *moved(words, places)]
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **environ})
        statuses[probe] = await asyncio.wait_for(process.wait(), 30)
    return statuses


async def test_with_the_manifests_commands_a_caller_is_answered(tmp_path: Path) -> None:
    manifests = {name_of(manifest): manifest for manifest in render(OVERLAY)}
    (worker,) = containers(manifests["Deployment", "curfew-worker"])
    (controller,) = containers(manifests["Deployment", "curfew-controller"])
    authority = Authority(tmp_path / "authority")
    (tmp_path / "policy.yaml").write_text(manifests["ConfigMap", "curfew-policy"]["data"]["policy.yaml"])
    for tenant in ("support", "analyst"):
        (tmp_path / tenant).write_text(f"key-of-{tenant}\n")
    of_worker = {
        "/models/served": str(ROOT / "demo" / "model"),
        "/etc/curfew/tls": mount(tmp_path / "worker", authority, "curfew-workers"),
    }
    of_controller = {
        "/etc/curfew/policy": str(tmp_path),
        "/etc/curfew/api-keys": str(tmp_path),
        "/etc/curfew/tls": mount(tmp_path / "controller", authority, "curfew-controller"),
        "$(CURFEW_STATE)": "redis://127.0.0.1:1/0",  # nobody is there: it starts all the same
    }
    async with AsyncExitStack() as stack:
        words = [word for word in worker["args"][1:] if not word.startswith(OF_A_GPU)]
        running_worker = await start_service("worker", moved(words, of_worker))
        stack.push_async_callback(running_worker.stop)
        # In place of the name, which is in the cluster's DNS.
        words = [word for word in controller["args"][1:] if not word.startswith("--workers-dns")]
        words = [*moved(words, of_controller), f"--worker={running_worker.addresses['listen']}"]
        running = await start_service("controller", words)
        stack.push_async_callback(running.stop)
        yes = dict.fromkeys(PROBES, 0)
        assert await probes(worker, running_worker, of_worker) == yes
        assert await probes(controller, running, of_controller) == yes
        tls = Tls(ca=authority.ca, server_name="curfew-controller")
        async with AsyncClient(running.addresses["listen"], key="key-of-support", tls=tls) as client:
            assert (await client.ask("What is 12 + 37 + 45?")).answer
