"""A small writer of nftables transactions."""
