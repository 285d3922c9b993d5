"""The nouns that every room shares, and the words of its messages.

`spec` says what is wanted of a tensor and what was found for it; `program` is a TFLite file as data, `operators.toml`
what is so of its operators. Nothing here knows Keras layers or files on disk, and nothing here imports another room.
Plain values and tables of facts come in, frozen data and words go out. A new noun goes here where two rooms need it and
neither owns it, if it is data; behaviour goes to the room that owns it.
"""
