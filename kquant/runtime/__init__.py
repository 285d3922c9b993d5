"""Run a `.tflite` file on the interpreters, each in a process of its own.

Bytes and samples come in, what the file gives for them goes out. A new interpreter is one function in `interpreters`,
and its name in `targets/*.toml`.
"""
