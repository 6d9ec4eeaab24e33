"""The mesh's errors: whose fault it was decides what happens.

A peer's bad bytes (`ProtocolError`) cost that connection. Nothing else leaves the protocol code.
"""


class MeshError(Exception):
    """A connection cannot go on; the text is what status and log show."""


class ProtocolError(MeshError):
    """The peer broke the protocol."""


class SilenceError(ProtocolError):
    """The peer said nothing for too long: the network, more often than the peer."""
