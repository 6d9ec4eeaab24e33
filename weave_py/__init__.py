"""The application: settings, daemon, control API, status, command line."""
