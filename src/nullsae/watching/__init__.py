"""What a study at work shows: how far it is, what it takes yet, what failed.

In: the events of a run of Snakemake, which `events` writes beside Snakemake's own log, and the logs
of its jobs. Out: a screen, or a line a minute. Nothing that a job reads may be written here.
"""

# The event by which Snakemake's terminal learns of the file of events. It stands here because
# Snakemake imports its loggers whatever it does.
RUN_STARTED = "nullsae_run_started"
