"""The paper's figures drawn anew: one file each. Figures 4, 7 and 10 are rows of pixels.eval."""

from pixels.reproduction.figures.figure_2 import figure_2
from pixels.reproduction.figures.figure_3 import figure_3
from pixels.reproduction.figures.figure_5 import figure_5
from pixels.reproduction.figures.figure_6 import figure_6
from pixels.reproduction.figures.figure_8 import figure_8
from pixels.reproduction.figures.gradient import gradient

FIGURES = {"2": figure_2, "3": figure_3, "5": figure_5, "6": figure_6, "8": figure_8, "gradient": gradient}
