"""From a run to the Kubernetes objects that it needs."""
