"""The control plane: identity, introduction, gossip, topology, routes, connections."""
