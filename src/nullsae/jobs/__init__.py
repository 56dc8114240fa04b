"""What a job is: the grid of cells, the params of each rule, the hash of its code."""
