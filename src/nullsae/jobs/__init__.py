"""What a job is: the grid of cells, the params of each rule, the hash of its code.

In: a config. Out: for each job of the workflow, its slice of the config and a key that changes with
its inputs, its slice or its code. Nothing here may do a job's work or load torch.
"""
