"""The parts of `operator_scale.py`: a control plane, nodes, agents, an observer and the scenarios."""
