"""From the raw outputs of a detector to boxes.

What the outputs mean (`Detection`) and the outputs come in, as real numbers of a Keras model or as codes of a file; the
boxes that are left of each sample (`Found`) go out. Codes are decoded and compared in integers, as the C of a project
(`projects/templates/detect.c`) does it, so that both give the same boxes, in the same order; `in_file` says which a
file can choose itself. A new form of boxes is a row in `decoding.FORMS`, with its corners there and in the template.
"""
