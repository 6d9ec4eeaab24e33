"""The user-space encrypted data path."""
