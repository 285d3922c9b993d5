"""From a quantized model to a file that has been proved to be the model.

`export_file` lowers, writes and reads back, `checked_runs` runs; `verification` compares file and model in codes,
`streams` does so frame by frame, `stored_check` the file with stored weights and the plain one (`asked_storing`: what
was asked for), `chosen_boxes` a file that chooses boxes and `Detection`. A quantized model comes in, a file that was
run and a report on it go out; a file that a check refuses is not written. A new check is called in `checked` of
`checked_runs`, a new form of the file is an argument of `export`, and a line in `file_options` for all who hand it on.
"""
