"""Where accuracy goes: `kquant.analyze` and `kquant.dry_run` put these together.

    units        the parts of a quantized model that can be in float or not, and what each costs
    sqnr         signal to noise, summed up over batches
    weights      what became of a layer's weights
    tensors      what becomes of a layer's outputs on their grid
    passes       the model over the data: in float, in integers, and with some units quantized only
    pairs        layers whose channels could be rescaled against each other
    findings     causes, with the remedy to try
    results      what all of them return
"""
