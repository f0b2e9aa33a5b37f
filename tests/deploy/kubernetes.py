"""Kubernetes manifests as kustomize builds them, and as they lie there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.compose import DEPLOY
from tests.deploy.tools import run

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu", "multi-replica")
Resource = dict[str, Any]


def build(overlay: str) -> list[Resource]:
    """An overlay's resources, by ``kubectl kustomize`` (or ``kustomize build``)."""
    path = str(KUBERNETES / "overlays" / overlay)
    if shutil.which("kubectl") is not None:
        text = run(["kubectl", "kustomize", path])
    elif shutil.which("kustomize") is not None:
        text = run(["kustomize", "build", path])
    else:
        # Debian's kubectl is too old for components, so no set-up here can bring one.
        pytest.skip("neither kubectl nor kustomize is installed")
    return [resource for resource in yaml.safe_load_all(text) if resource]


def manifests(path: Path) -> list[Resource]:
    """The resources in a file, without kustomize's own."""
    found = [resource for resource in yaml.safe_load_all(path.read_text()) if resource]
    return [r for r in found if "kustomize.config.k8s.io" not in str(r.get("apiVersion"))]


def sources() -> list[Path]:
    """All files of manifests that are whole by themselves."""
    paths = [*(KUBERNETES / "base").glob("*.yaml"), *(KUBERNETES / "components").glob("*/*.yaml")]
    return sorted(path for path in paths if path.name != "kustomization.yaml")


def gateway_configs() -> list[Path]:
    """The gateway's settings of every overlay."""
    return sorted((KUBERNETES / "overlays").glob("*/gateway.yaml"))


def files(overlay: str) -> list[Resource]:
    """Resources without kustomize: the base, components, and patches that hold containers.

    Good enough to read commands from, and independent of what is installed.
    """
    result = [resource for path in sources() for resource in manifests(path)]
    directory = KUBERNETES / "overlays" / overlay
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    for patch in kustomization.get("patches", ()):
        if "path" in patch:
            for resource in manifests(directory / patch["path"]):
                for container in containers(resource):
                    container.setdefault("image", "vora-serve-engine")
                result.append(resource)
            continue
        for operation in yaml.safe_load(patch["patch"]):
            if operation["path"].endswith("/args"):
                result.append(_pod({"args": operation["value"]}))
            if operation["path"].endswith("/env"):
                result.append(_pod({"env": operation["value"]}))
    return result


def _pod(more: Resource) -> Resource:
    container = {"name": "engine", "image": "vora-serve-engine", **more}
    return {"kind": "StatefulSet", "spec": {"template": {"spec": {"containers": [container]}}}}


def workloads(resources: Iterable[Resource]) -> Iterator[Resource]:
    """What runs pods."""
    for resource in resources:
        if resource["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield resource


def containers(resource: Resource) -> list[Resource]:
    """A workload's containers."""
    found: list[Resource] = resource["spec"]["template"]["spec"]["containers"]
    return found


def pick(resources: Iterable[Resource], kind: str, name: str) -> Resource:
    """The resource of that kind and name."""
    return next(r for r in resources if r["kind"] == kind and r["metadata"]["name"] == name)
