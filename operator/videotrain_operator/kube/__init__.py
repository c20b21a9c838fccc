"""Access to a real Kubernetes API server: a thin JSON client, informers with their caches, and the Cluster on top."""
