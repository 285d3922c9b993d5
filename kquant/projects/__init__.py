"""A verified file -> a project that builds: what a program on the device needs beside the file, and a test of its own.

A quantized model with samples comes in, or the bytes of a file with a description of its edges. A folder goes out: the
file, as an array for a microcontroller with the operators that it uses and its arena, conversions of real numbers and
codes, golden vectors of the interpreter, a test of its own, and the build files of one kind of project.

    project     the verb: export, describe, render, write
    described   what a template may say, as frozen data
    arena       the smallest arena, by trial
    golden      inputs and the codes that an interpreter gives for them
    languages   types of values and reserved words of C, Kotlin and Swift
    names       what users call things -> legal, distinct names there
    kinds       `kinds.toml`: which templates make up a project of a kind, and where they lie in it
    rendering   templates -> text

A new kind of project is an entry in `kinds.toml`, with its templates in `templates/`. All text of generated files is
in templates; what they say is in `described`.
"""
