"""Everything that a study reads from hubs, downloaded beforehand.

In: a config. Out: the hub's cache on this machine, complete enough to run offline. Nothing here
may run a job of the study.
"""
