"""What measures the method: the paper's figures and analyses; the keys are the words of svdiff.eval --figure."""

# figure -> module, heavy to import, and its function; the rows and pictures are in a folder of the function's name
FIGURES = {
    "5": "figures.single",
    "6": "figures.multi",
    "7": "edits.edits",
    "8": "figures.combination",
    "9": "correlation.correlation",
    "10": "figures.style",
    "11": "figures.interpolation",
    "ablation": "figures.ablation",
    "rank": "figures.rank",
    "scaling": "figures.scaling",
    "study": "user_study.user_study",
    "tuning": "tuning.tuning",
}


def folder_name(figure: str) -> str:
    return FIGURES[figure].partition(".")[2]
