"""A Kubernetes API client on asyncio, and what a node of an overlay does with it. It knows nothing of ours.

`config`, `client`: one cluster, requests. `watch`: a resource followed for as long as we run. `peers`: who
else is there. `registry`, `reclaim`: the object in which peers are listed, and what follows when one is gone.
`node_status`: what the cluster is told about our node. `membership` does all that for as long as we run.
"""
