"""From a quantized model to a file that has been proved to be the model.

`export_file` lowers, writes, reads back and runs; `verification` compares file and model in codes, `streams` does so
frame by frame, `stored_check` the file with stored weights and the plain one.
"""
