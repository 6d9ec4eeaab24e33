"""What the stand-in API server serves, and its answers that are no objects: Status, in the words of a real server.

Texts, codes and details are those recorded from Kubernetes 1.36 (`tests/vectors/kube-api`).
"""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object and where it is served; `status`: whether it has the subresource `status`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    short: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As error messages call it: `networkpolicies.networking.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def root(self) -> str:
        """The path below which the group is served."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


RESOURCES = (
    Resource("", "v1", "nodes", "Node", namespaced=False, status=True, short="no"),
    Resource("", "v1", "namespaces", "Namespace", namespaced=False, status=True, short="ns"),
    Resource("", "v1", "pods", "Pod", status=True, short="po"),
    Resource("", "v1", "services", "Service", status=True, short="svc"),
    Resource("", "v1", "configmaps", "ConfigMap", short="cm"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", short="sa"),
    Resource("", "v1", "events", "Event", short="ev"),
    Resource("apps", "v1", "daemonsets", "DaemonSet", status=True, short="ds"),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short="netpol"),
    Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False),
    Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
)


class StatusError(Exception):
    """An answer that is a Status of kind Failure."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Object | None = None,
        *,
        metadata: Object | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details
        self.metadata = metadata or {}
        self.retry_after = retry_after

    def status(self) -> Object:
        document: Object = {"kind": "Status", "apiVersion": "v1", "metadata": self.metadata, "status": "Failure"}
        document["message"] = str(self)
        if self.reason:
            document["reason"] = self.reason
        if self.details is not None:
            document["details"] = self.details
        return document | {"code": self.code}


def details(resource: Resource, name: str = "") -> Object:
    """Whom a Status speaks of."""
    named = {"name": name} if name else {}
    grouped = {"group": resource.group} if resource.group else {}
    return named | grouped | {"kind": resource.plural}


def not_found(resource: Resource, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{resource.qualified} "{name}" not found', details(resource, name))


def already_exists(resource: Resource, name: str) -> StatusError:
    return StatusError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', details(resource, name))


def conflict(resource: Resource, name: str) -> StatusError:
    return StatusError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again",
        details(resource, name),
    )


def invalid(resource: Resource, name: str, field: str, message: str) -> StatusError:
    cause = {"reason": "FieldValueInvalid", "message": message, "field": field}
    text = f'{resource.kind}{"." if resource.group else ""}{resource.group} "{name}" is invalid: {field}: {message}'
    grouped = {"group": resource.group} if resource.group else {}
    return StatusError(422, "Invalid", text, {"name": name, **grouped, "kind": resource.kind, "causes": [cause]})


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def expired(continuing: str = "") -> StatusError:
    """What was asked for is no longer kept; `continuing` as in a list: the rest can be had inconsistently."""
    if not continuing:
        return StatusError(410, "Expired", "The resourceVersion for the provided watch is too old.")
    message = "The provided continue parameter is too old to display a consistent list result."
    return StatusError(410, "Expired", message, metadata={"continue": continuing})


def bad_version(text: str) -> StatusError:
    message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
    return StatusError(500, "", message)


def future_version(asked: int, current: int) -> StatusError:
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    said = {"causes": [cause], "retryAfterSeconds": 1}
    return StatusError(504, "Timeout", message, said, retry_after=1)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: Resource, subresource: str, name: str, namespace: str) -> StatusError:
    what = f"{resource.plural}/{subresource}" if subresource else resource.plural
    subject = f'{resource.qualified} "{name}"' if name else resource.qualified
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{subject} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group "{resource.group}" {where}'
    )
    return StatusError(403, "Forbidden", message, details(resource, name))
