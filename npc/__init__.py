"""Network policy: Kubernetes objects become a plan of rules, a plan becomes nftables, every verdict has its reason."""
