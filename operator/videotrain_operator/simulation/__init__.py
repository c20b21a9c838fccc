"""A cluster in memory and in simulated time, against which the real observe, plan and apply run.

What the planner decides there is what it would decide; how long things take is only assumed (`Pace`). So it answers
"what happens to this run if a node is lost after an hour", and says nothing about the speed of a real cluster, its
scheduler or its network. There is no clock and no randomness: the same events give the same history.
"""
