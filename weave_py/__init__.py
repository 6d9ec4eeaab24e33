"""The application: settings, daemon, control API, status, command line."""

__version__ = "0.1.0"
