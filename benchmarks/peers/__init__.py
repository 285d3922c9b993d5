"""kquant and every peer on the same models, data and samples, in one run: `python -m benchmarks.peers --help`.

    tools.toml -> `environments` (a venv for each peer, from the registry)
    tasks      -> a folder: the float model, what to calibrate and to judge with
    scripts/   -> a file made by each way of each tool, in a process of the tool's own environment
    judging    -> what the file is worth: accuracy on every runtime, bytes, arena, latency
    store      -> results/peers.json, row by row, so that a run goes on where it was stopped
    tables     -> docs/peers.md and the README's table, which a test holds against the JSON

A new tool is an entry in tools.toml and a script.
"""
