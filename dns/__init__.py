"""Names: who registered what, gossiped among peers; a DNS server for them; everything else goes to upstream servers."""
