"""Everything that a study reads from hubs, downloaded ahead of it.

In: a config. Out: the hub's cache on this machine, complete enough to run offline. Nothing here
may do a job of the study.
"""
