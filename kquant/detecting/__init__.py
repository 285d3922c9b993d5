"""From the raw outputs of a detector to boxes.

Comes in: what the outputs mean (`Detection`), and the outputs, as real numbers of a Keras model or as codes of a file.
Goes out: the boxes that are left of each sample (`Found`). Codes are decoded and compared in integers, as the C of a
project (`projects/templates/detect.c`) does it, so that both give the same boxes, in the same order. To add a form of
boxes, write its row in `decoding.FORMS` and its corners there and in the template.
"""
