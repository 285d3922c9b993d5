"""From a quantized model to a file that has been proved to be the model.

`export_file` lowers, writes, reads back and runs; `verification` compares file and model in codes, `streams` does so
frame by frame, `lut_check` the file with look-up tables and the one without, `c_array` writes a file as source code.
"""
