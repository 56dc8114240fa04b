"""The verbs of the command line, grouped by topic.

In: arguments. Out: one call of the function that does the work, and an exit code. Only this room
imports from all others. Verbs import when they are called, so that `nullsae --help` stays fast.
"""
