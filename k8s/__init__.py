"""Running it elsewhere: Kubernetes objects, rendered from configs."""
