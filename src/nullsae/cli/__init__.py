"""The verbs of the command line, by what they are about.

In: arguments. Out: one call of the function that does the work, and an exit code. Only this room
knows all others. Verbs import them when called, so that `nullsae --help` stays fast.
"""
