"""`tqdm`: bars that are widgets in a notebook that shows some, and text anywhere else."""

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():  # in notebooks without ipywidgets tqdm asks for them, whether a bar is shown or not
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
