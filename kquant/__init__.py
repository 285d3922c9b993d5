"""kquant: compress Keras 3 models for phones and microcontrollers.

quantize -> calibrate -> (compile, fit) -> export -> verify, predict, inspect

q = kquant.quantize(model)              # a Keras model again; `model` is untouched
kquant.calibrate(q, images)             # ranges from representative data
q.compile(...); q.fit(...)              # optional: quantization-aware training
report = kquant.export(q, "m.tflite")   # full integer, read back and run before it returns
"""

from typing import Any

import lazy_loader
from wrapt import register_post_import_hook

from kquant import moved
from kquant.core import result as _result
from kquant.core.messages import did_you_mean as _did_you_mean

__version__ = "0.1.0"
_attached, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names in `__init__.pyi`


def __getattr__(name: str) -> Any:
    if name in __all__ or name.startswith("__"):
        return _attached(name)
    raise AttributeError(f"kquant has no '{name}'.{_did_you_mean(name, __all__)}")


# `import kquant; keras.models.load_model(...)` must know the layers, while the command `kquant` answers before Keras,
# and TensorFlow with it, has loaded. So they register when Keras has been imported, at once where it has been before.
register_post_import_hook("kquant.registration:register", "keras")
moved.install()
_result.DRAWN_BY[:] = ["kquant.report.html_file:fragment"]  # `_repr_html_` of what lies below the reports
