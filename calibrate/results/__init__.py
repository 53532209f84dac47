"""What candidates came to.

In come the records of a study's generations and trials; out come `Result`s, their front, the one that a rule picks
among those above the floors, and what the tests on guarantee cases allow to promise.
"""
