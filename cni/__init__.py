"""The CNI plugin: a courier in C on the node, and the router's side of it, where everything is decided."""
