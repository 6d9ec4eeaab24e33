"""What can be wrong with an object of the cluster."""


class PolicyError(Exception):
    """A policy says what has no meaning; the text names the field, its value, and what was wanted."""
