"""The paper's figures and analyses, each a module with run(study); the keys are the words of svdiff.eval --figure."""

# figure -> module, heavy to import; figures of one module share its pictures
FIGURES = {
    "5": "single", "6": "multi", "7": "edits", "8": "combination", "9": "correlation", "10": "style",
    "11": "interpolation", "ablation": "ablation", "rank": "strength", "scaling": "strength", "study": "user_study",
}  # fmt: skip


def folder_name(figure: str) -> str:
    """The folder of a figure's rows and pictures: its module's, but rank and scaling have one each."""
    return figure if FIGURES[figure] == "strength" else FIGURES[figure]
