"""From scores of time steps to a text, as a network trained with CTC means them.

What the output means (`Ctc`; `ctc_file`, the same as TOML) and the outputs come in, as real numbers of a Keras model or
as codes of a file; the labels of each sample (`Transcript`) go out. The largest code of a step is that of the largest
score: codes are compared as they are, and the C of a project (`projects/templates/ctc.c`) writes the same labels. A new
way to read the scores (a beam, a language model) is a file here, and a template there.
"""
