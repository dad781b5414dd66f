"""The ledger: every claim of the five papers that can be tried, with what was measured and the verdict.

python -m eval.claims                     all papers, by the committed rows
python -m eval.claims --papers spdinv     one
"""

import argparse

from common import claims
from common.claims import FAILS, HOLDS, INCONCLUSIVE, PAPERS, Finding
from common.runs import make_parser, script
from common.tables import text_table
from eval import freshness
from eval.tracks.personalization.matched import matched_difference


def findings(experiment: str, rows: list[dict]) -> list[Finding]:
    """Every claim that this experiment (or track) decides, tried on these rows."""
    return [claims.judge(claim, rows, matched_difference) for claim in freshness.claims_of(experiment)]


def ledger(paper: str) -> list[Finding]:
    """The paper's claims, tried on the rows of eval/results that are of the present weights and data."""
    return [claims.judge(claim, freshness.fresh_rows(claim["experiment"]), matched_difference)
            for claim in claims.read_claims(paper)]  # fmt: skip


def counts(found: list[Finding]) -> dict[str, int]:
    """How many claims hold, do not, are inconclusive, were not run; without those that hold by construction."""
    kinds = {HOLDS: 0, FAILS: 0, INCONCLUSIVE: 0, "not run": 0}
    for one in found:
        if one.claim.get("constructed"):
            continue
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
