"""A quantized Keras model comes in, a program and its bytes go out; and bytes are read again.

`lowering` walks the model and lets each call's rule write its operators, `passes`, `planes` and `aliases` tidy the
program, `streaming` turns it into one over the newest frames, `stored_weights` puts weights behind a DECODE,
`box_choice` lets it end in boxes, `flatbuffer` writes the bytes, `file_content` goes through them all; `reader` reads
any file, `weight_bytes` says what its weights take, `anatomy` what every byte is, `names` gives those of the model to a
file without any. A new way to store weights is one file here, beside `lut_format`, `prune_format` and `huffman_format`
(codes and tables are made in `prefix_code`), and its entry in `storage.STORAGES`.
"""
