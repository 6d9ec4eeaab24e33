"""A certificate for the stand-in API server at 127.0.0.1, which is its own authority."""

import ssl
import subprocess
from pathlib import Path


def self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """The file of the authority (PEM), and what the server listens with."""
    certificate, key = directory / "ca.crt", directory / "ca.key"
    names = ["-subj", "/CN=kube", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    made = [*command, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
