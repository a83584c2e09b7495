"""The step over frozen segments in torch: what the offline module and the engines of a GPU still use."""
