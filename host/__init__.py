"""What is made on a host: bridge, TAP, containers' veths."""
