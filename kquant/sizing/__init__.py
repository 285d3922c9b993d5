"""What a model will take on a device, told before it is trained: `kquant.estimate`, `kquant size`.

A float model comes in, an `Estimate` goes out. `made_up` stands in for training and calibration, `layer_sizes` splits
the file's figures by Keras layer, `estimation` is the verb; `operator_figures` tells of any file, operator by operator.
A new figure is a field of `estimates.Estimate` and a line in `report/size.py`.
"""
