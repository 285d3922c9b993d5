"""From Keras 2 (tf_keras) and tfmot: an old file comes in, a Keras 3 model goes out, compared with the old one.

    old file -> `old_files` (checked copy, configuration) -> `refusals` (code in it) -> `reading`, a process with
    tf_keras -> `old_model` (plain data) -> `tfmot_wrappers` (taken off) -> `building`, `stored_weights`
    -> `kept_patterns` (masks, shared values) -> `kquant.quantize` -> `learned_ranges`

A new difference between the configurations of layers is a line of `layers.toml`, a new function of TensorFlow between
layers is an entry of `operations.toml`.
"""

from kquant.migrate.migration import from_tf_keras, from_tfmot
from kquant.migrate.result import Distance, Migrated

__all__ = ["Distance", "Migrated", "from_tf_keras", "from_tfmot"]
