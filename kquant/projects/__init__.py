"""A verified file -> a project that builds: what a program on the device needs beside the file, and a test of its own.

In comes a quantized model with samples, or the bytes of a file with a description of its edges. Out comes a folder: the
file as an array, the operators that it uses, its arena, conversions of real numbers and codes, golden vectors of the
interpreter, a self-test, and the build files of one kind of project.

    project     the verb: export, describe, render, write
    described   what a template may say, as frozen data
    arena       the smallest arena, by trial
    golden      inputs and the codes that TFLM gives for them
    names       what users call things -> legal, distinct names in C
    rendering   templates, and `kinds.toml`: which of them make up a project of a kind, and where they lie in it

To add a kind of project: an entry in `kinds.toml`, with its templates in `templates/`. All text of generated files is
in templates; what they say is in `described`.
"""
