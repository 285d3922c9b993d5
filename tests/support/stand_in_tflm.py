"""Stands for TensorFlow Lite Micro, and for Arduino, where only the compiler is asked."""

from __future__ import annotations

from pathlib import Path

MICRO = ("interpreter", "log", "mutable_op_resolver", "allocator", "resource_variable")

# As much of TensorFlow Lite Micro as a project names; its interpreter has no room for any model.
TFLM = """
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define MicroPrintf(...) (printf(__VA_ARGS__), printf("\\n"))
#define TFLITE_SCHEMA_VERSION 3
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
struct TfLiteTensor { union { void* data; } data; size_t bytes; };
namespace tflite {
struct Model { unsigned version() const { return 3; } };
inline const Model* GetModel(const void* data) { return static_cast<const Model*>(data); }
template <unsigned n> struct MicroMutableOpResolver {
  TfLiteStatus AddAdd() { return kTfLiteOk; }
  TfLiteStatus AddAssignVariable() { return kTfLiteOk; }
  TfLiteStatus AddCallOnce() { return kTfLiteOk; }
  TfLiteStatus AddConcatenation() { return kTfLiteOk; }
  TfLiteStatus AddConv2D() { return kTfLiteOk; }
  TfLiteStatus AddDequantize() { return kTfLiteOk; }
  TfLiteStatus AddFullyConnected() { return kTfLiteOk; }
  TfLiteStatus AddLogistic() { return kTfLiteOk; }
  TfLiteStatus AddQuantize() { return kTfLiteOk; }
  TfLiteStatus AddReadVariable() { return kTfLiteOk; }
  TfLiteStatus AddReshape() { return kTfLiteOk; }
  TfLiteStatus AddSlice() { return kTfLiteOk; }
  TfLiteStatus AddSoftmax() { return kTfLiteOk; }
  TfLiteStatus AddVarHandle() { return kTfLiteOk; }
  TfLiteStatus AddBroadcastTo() { return kTfLiteOk; }
  TfLiteStatus AddDynamicUpdateSlice() { return kTfLiteOk; }
  TfLiteStatus AddEnergy() { return kTfLiteOk; }
  TfLiteStatus AddFftAutoScale() { return kTfLiteOk; }
  TfLiteStatus AddFilterBank() { return kTfLiteOk; }
  TfLiteStatus AddFilterBankLog() { return kTfLiteOk; }
  TfLiteStatus AddFilterBankSpectralSubtraction() { return kTfLiteOk; }
  TfLiteStatus AddFilterBankSquareRoot() { return kTfLiteOk; }
  TfLiteStatus AddLess() { return kTfLiteOk; }
  TfLiteStatus AddMul() { return kTfLiteOk; }
  TfLiteStatus AddPCAN() { return kTfLiteOk; }
  TfLiteStatus AddRfft() { return kTfLiteOk; }
  TfLiteStatus AddWhile() { return kTfLiteOk; }
  TfLiteStatus AddWindow() { return kTfLiteOk; }
};
struct MicroAllocator {
  static MicroAllocator* Create(uint8_t*, size_t) { return nullptr; }
};
struct MicroResourceVariables {
  static MicroResourceVariables* Create(MicroAllocator*, int) { return nullptr; }
};
// Read from memory, so that no compiler knows the answer and leaves out what comes behind it.
template <class T> T Opaque(T value) {
  volatile T kept = value;
  return kept;
}
struct MicroInterpreter {
  template <class R> MicroInterpreter(const Model*, const R&, uint8_t*, size_t) {}
  template <class R> MicroInterpreter(const Model*, const R&, MicroAllocator*, MicroResourceVariables*) {}
  TfLiteStatus AllocateTensors() { return Opaque(kTfLiteError); }
  TfLiteStatus Invoke() { return Opaque(kTfLiteError); }
  TfLiteStatus Reset() { return Opaque(kTfLiteOk); }
  TfLiteTensor* input(size_t) { return Opaque(static_cast<TfLiteTensor*>(nullptr)); }
  TfLiteTensor* output(size_t) { return Opaque(static_cast<TfLiteTensor*>(nullptr)); }
  size_t arena_used_bytes() const { return 0; }
};
inline void InitializeTarget() {}
}  // namespace tflite
"""

CORTEX_M = """
#pragma once
inline void RegisterDebugLogCallback(void (*)(const char*)) {}
"""

ARDUINO = """
#pragma once
struct Port {
  void begin(long) {}
  void println(const char*) {}
  explicit operator bool() const { return true; }
};
static Port Serial;
inline unsigned long millis() { return 0; }
inline void delay(unsigned long) {}
"""


def stands_for_tflm(folder: Path) -> Path:
    """Write the headers; returns the folder to include."""
    micro, schema = (folder / "tensorflow" / "lite" / name for name in ("micro", "schema"))
    for each in (micro, schema):
        each.mkdir(parents=True)
    (schema / "schema_generated.h").write_text(TFLM)
    for name in (*(f"micro_{one}" for one in MICRO), "system_setup"):
        (micro / f"{name}.h").write_text('#include "../schema/schema_generated.h"\n')
    (micro / "cortex_m_generic").mkdir()
    (micro / "cortex_m_generic" / "debug_log_callback.h").write_text(CORTEX_M)
    (folder / "TensorFlowLite.h").write_text(ARDUINO)
    return folder
