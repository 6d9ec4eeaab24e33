"""What goes wrong on a host, in one line for a person."""


class HostError(Exception):
    """Something on this host is not as it must be: what, which value, what to do."""
