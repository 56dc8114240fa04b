"""Estimate a study before it runs: jobs, time, memory, disk, LLM calls, cost.

In: a config, and the measured or tabulated speed of a machine. Out: the plan that `nullsae plan`
prints, and resources for the workflow. Nothing here may run a job or load a model's weights.
"""
