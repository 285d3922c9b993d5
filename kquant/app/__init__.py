"""The command line, the whole flow in one call, and the demonstration.

`cli` parses and prints, `options` are what its commands share, `command_files` and `result_files` read and write what
they name, `pipeline` is `kquant.compress`. Words of a command line, or a call, come in; files and what is printed go
out. A new command is one function in `cli`.
"""
