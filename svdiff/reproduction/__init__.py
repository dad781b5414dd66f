"""What measures the method: the paper's figures and analyses; the keys are the words of svdiff.eval --figure."""

# figure -> (module, heavy to import; its function; folder of its rows and pictures)
FIGURES = {
    "5": ("figures", "single", "single"),
    "6": ("figures", "multi", "multi"),
    "7": ("edits", "run", "edits"),
    "8": ("figures", "combination", "combination"),
    "9": ("correlation", "run", "correlation"),
    "10": ("figures", "style", "style"),
    "11": ("figures", "interpolation", "interpolation"),
    "ablation": ("figures", "ablation", "ablation"),
    "rank": ("figures", "rank", "rank"),
    "scaling": ("figures", "scaling", "scaling"),
    "study": ("user_study", "run", "user_study"),
    "tuning": ("tuning", "run", "tuning"),
}


def folder_name(figure: str) -> str:
    return FIGURES[figure][2]
