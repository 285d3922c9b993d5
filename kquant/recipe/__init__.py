"""What a user asks for: recipes as strict TOML or JSON, or the same in Python.

Text, a name or a dict comes in, a frozen `Recipe` goes out, before TensorFlow has loaded. A new setting is a field of
`recipe`, or of the section that it belongs to; a new section is a file `*_section`, which is found (see `section`).
`litert_quantizer` reads and writes the recipes of LiteRT Quantizer.
"""
