"""What a study takes, before it runs: jobs, time, disk, calls, money."""
