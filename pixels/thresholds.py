"""The grey above which step i of N puts the source back: Appendix 5, as printed.

i: numbers of the steps, 0 ... N-1 (integers); n: N, or what the schedule counts in its place. An entry here is a choice
of --threshold, and a row of Figures 7 and 10; nothing heavy is imported, so that flags can ask.
"""

THRESHOLDS = {
    "linear": lambda i, n: i / n,
    "quadratic": lambda i, n: (i / n) ** 2,
    "cubic": lambda i, n: (i / n) ** 3,
    "log": lambda i, n: i.log1p() / (0 * i + n).log1p(),
    "sigmoid": lambda i, n: (i / n * 6 - 3).sigmoid(),
}
