"""Where accuracy went: measured layer by layer, with causes and with remedies that were tried.

`diagnosis` is the verb; `units`, `tensors`, `weights`, `pairs` and `liveness` measure, `findings` names causes,
`remedies` tries what may help, `try_steps` runs corrections on a copy; `separately` measures piece by piece, for a
stopped call to go on, or for other processes. A quantized model and samples come in, frozen results go out. A new cause
is one function in `findings`.
"""
