"""The ledger: every claim of the five papers that can be tried, with what was measured and the verdict.

    python -m eval.claims                     all papers, by the committed rows
    python -m eval.claims --papers spdinv     one
"""

import argparse
from dataclasses import dataclass

from common import claims
from common.claims import FAILS, HOLDS, INCONCLUSIVE, PAPERS, Interval
from common.runs import make_parser, script
from common.tables import text_table
from eval.report.measures import Measure, measure

UNDECIDED = INCONCLUSIVE


@dataclass(frozen=True)
class Finding:
    """A claim and what the rows say about it. difference: method minus baseline, in stored units."""

    claim: dict
    measure: Measure
    difference: Interval
    verdict: str
    why: str = ""


def judge(claim: dict, rows: list[dict]) -> claims.Finding:
    """common.claims.judge, with curves compared where the claim asks for it."""
    from eval.tracks.personalization.matched import matched_difference

    return claims.judge(claim, rows, matched_difference)


def findings(experiment: str, rows: list[dict]) -> list[Finding]:
    """Every claim that this experiment (or track) decides, tried on these rows."""
    wanted = [claim for paper in PAPERS for claim in claims.read_claims(paper) if claim["experiment"] == experiment]
    found = [judge(claim, rows) for claim in wanted]
    return [Finding(one.claim, measure(one.key), one.gap, one.verdict, one.why) for one in found]


def ledger(paper: str) -> list[claims.Finding]:
    """The paper's claims, tried on the rows of eval/results that are of the present weights and data."""
    from eval.freshness import fresh_rows

    return [judge(claim, fresh_rows(claim["experiment"])) for claim in claims.read_claims(paper)]


def counts(found: list[claims.Finding]) -> dict[str, int]:
    """How many claims hold, do not, are inconclusive, were not run."""
    kinds = {HOLDS: 0, FAILS: 0, INCONCLUSIVE: 0, "not run": 0}
    for one in found:
        kinds[one.verdict if one.gap.n else "not run"] += 1
    return kinds


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--papers", nargs="+", choices=PAPERS, default=list(PAPERS), help="whose claims")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    for paper in parse(argv).papers:
        found = ledger(paper)
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts(found).items())
        print(f"{paper}: {said}\n\n{text_table(claims.table(found))}\n")


if __name__ == "__main__":
    main()
