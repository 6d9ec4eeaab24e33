"""What a pod's port on the bridge says of itself: network, container, interface and address, in the link's alias.

The kernel keeps it as long as the port lives, so who is behind a port is known without a list of our own, also where
the container's processes cannot be seen; `ip link` shows it. Source: Kubernetes and CNI spec §1.5, §8.
"""

import hashlib
from dataclasses import dataclass
from urllib.parse import quote, unquote

_FIRST = "weave-cni"
# Octets that the kernel takes, less room for the container's id, the interface, the address and blanks.
_LONGEST_NETWORK = 120
# The interface that a runtime makes unless it is told otherwise.
FIRST_INTERFACE = "eth0"


@dataclass(frozen=True, slots=True)
class PodPort:
    """Whose port it is. `cidr` is `ip/prefix`."""

    network: str
    container: str
    interface: str
    cidr: str

    def alias(self) -> str:
        """The text on the link."""
        network = quote(self.network, safe="") or "-"
        if len(network) > _LONGEST_NETWORK:
            network = hashlib.sha256(network.encode()).hexdigest()
        return f"{_FIRST} {network} {self.container} {self.interface} {self.cidr}"

    def is_of(self, network: str) -> bool:
        """Whether it belongs to a network; a name that is too long is known by its digest."""
        return PodPort(network, "", "", "").alias().split(" ")[1] == self.alias().split(" ")[1]

    @property
    def ident(self) -> str:
        """By what the holder of its address is known."""
        return owner(self.container, self.interface)


def pod_port(alias: str) -> PodPort | None:
    """What an alias says; None if it is no pod's."""
    words = alias.split(" ")
    if len(words) != 5 or words[0] != _FIRST:
        return None
    return PodPort(unquote(words[1]) if words[1] != "-" else "", *words[2:])


def owner(container: str, interface: str) -> str:
    """By what an address's holder is known: the container's id, as Weave Net has it; for others the interface too."""
    return container if interface == FIRST_INTERFACE else f"{container}@{interface}"
