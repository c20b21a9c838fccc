"""The bill of a run as it is kept, cut by time, summed by whom or what, and told as FOCUS rows."""
