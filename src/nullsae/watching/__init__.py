"""Show a running study: its progress, the time left, and what failed.

In: the events of a run of Snakemake, which `events` writes next to Snakemake's own log, and the
logs of its jobs. Out: a screen, or a line per minute. Nothing that a job reads may be written here.
"""

# The event that tells Snakemake's logger the file of events. It is defined here, because Snakemake
# always imports its loggers, and this module is small.
RUN_STARTED = "nullsae_run_started"
