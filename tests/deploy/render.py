"""The part of Kustomize that deploy/kubernetes uses, so that it is checked where there is no kubectl:
resources, namespace, images, configMapGenerator with fixed names, and patches by strategic merge.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
# Lists of these keys are merged item by item, by the key that tells items apart; all others are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "configMapGenerator", "patches"}


def render(directory: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a directory, in any order."""
    kustomization = _read(directory / "kustomization.yaml")
    assert kustomization.keys() <= _KNOWN, kustomization.keys() - _KNOWN
    manifests: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = directory / resource
        manifests += render(path) if path.is_dir() else _read_all(path)
    for generator in kustomization.get("configMapGenerator", ()):
        _generate(directory, generator, manifests)
    for patch in kustomization.get("patches", ()):
        for change in _read_all(directory / patch["path"]):
            (at,) = [i for i, manifest in enumerate(manifests) if name_of(manifest) == name_of(change)]
            manifests[at] = _merged(manifests[at], change)
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
        for container in containers(manifest):
            for image in kustomization.get("images", ()):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return manifests


def name_of(manifest: Manifest) -> tuple[str, str]:
    """Kind and name."""
    return manifest["kind"], manifest["metadata"]["name"]


def pod_of(manifest: Manifest) -> Manifest:
    """The pod's spec of a Deployment; empty for anything else."""
    spec: Manifest = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return spec


def containers(manifest: Manifest) -> list[Manifest]:
    """Containers of a Deployment."""
    found: list[Manifest] = pod_of(manifest).get("containers", [])
    return found


def _generate(directory: Path, generator: Manifest, manifests: list[Manifest]) -> None:
    assert generator["options"] == {"disableNameSuffixHash": True}
    files = {name: (directory / name).read_text() for name in generator["files"]}
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"]},
        "data": files,
    }
    before = [manifest for manifest in manifests if name_of(manifest) == name_of(made)]
    assert len(before) == (generator.get("behavior") == "replace")
    manifests[:] = [manifest for manifest in manifests if manifest not in before] + [made]


def _merged(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        result = copy.deepcopy(old)
        for name, value in new.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = _merged(result[name], value, name) if name in result else _plain(value)
        return result
    if isinstance(old, list) and isinstance(new, list) and key in _MERGE_KEYS:
        by = _MERGE_KEYS[key]
        merged = {item[by]: item for item in copy.deepcopy(old)}
        for item in new:
            if item.get("$patch") == "delete":
                del merged[item[by]]
            else:
                merged[item[by]] = _merged(merged.get(item[by], {}), item)
        return list(merged.values())
    return _plain(new)


def _plain(value: Any) -> Any:
    """A value without what only a patch has."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    return copy.deepcopy(value)


def _read(path: Path) -> Manifest:
    (manifest,) = _read_all(path)
    return manifest


def _read_all(path: Path) -> Iterator[Manifest]:
    yield from yaml.safe_load_all(path.read_text())
