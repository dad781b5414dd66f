"""Run the five lecture notebooks and keep their outputs.

    python -m eval.lectures                  all, as committed (make lectures)
    python -m eval.lectures spdinv --quick   one in its quick form; nothing is kept

Each runs in the repository's root, so that its imports are the project's. A cell that fails is told, and the notebook
on the disk stays as it was.
"""

import argparse
import os

from common.claims import PAPERS
from common.runs import InputError, atomic_path, make_parser, script
from common.tables import ROOT

SECONDS = 3600  # that a cell may take


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("papers", nargs="*", help="folders of papers; all that have a lecture by default")
    add("--quick", action="store_true", help="in quick form (LECTURE_QUICK=1 for the cells), keeping nothing")
    args = parser.parse_args(argv)
    for paper in args.papers:
        if paper not in PAPERS or not lecture(paper).is_file():
            raise InputError(f"{paper} has no lecture.ipynb; give some of {', '.join(PAPERS)}")
    args.papers = args.papers or [paper for paper in PAPERS if lecture(paper).is_file()]
    return args


def lecture(paper: str):
    return ROOT / paper / "lecture.ipynb"


def run(paper: str, quick: bool) -> None:
    """Execute a lecture from its first cell on and write its outputs, unless `quick`. InputError for a failing cell."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book = nbformat.read(lecture(paper), as_version=4)
    client = NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"LECTURE_QUICK": "1"} if quick else {})}
    try:
        client.execute(env=environment)
    except CellExecutionError as problem:
        raise InputError(f"{lecture(paper)}: a cell failed: {problem.ename}: {problem.evalue}") from None
    if not quick:
        for cell in book.cells:
            cell.metadata.pop("execution", None)  # times of day, which differ from run to run
            if "outputs" in cell:  # progress bars, and warnings with paths of this computer
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        with atomic_path(lecture(paper)) as temporary:
            nbformat.write(book, temporary)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for paper in args.papers:
        run(paper, args.quick)
        print(f"{lecture(paper)}: every cell ran" + ("" if args.quick else ", outputs kept"), flush=True)


if __name__ == "__main__":
    main()
