"""The in-process cluster: a durable object store, process nodes and a scheduler behind the operator's interface."""
