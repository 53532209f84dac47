"""Where jobs are run: in this process, or on the devices of a Ray cluster.

In comes a job, a small object that says what is to be done with a loaded target; out comes what it gave, or that the
process which ran it has died. Nothing here knows a study, a budget or a database.
"""
