/// An input or output of integers: real = scale * (code - zeroPoint).
public struct TinyNetModelEdge {
  public let scale: Float
  public let zeroPoint: Int
  public let low: Int
  public let high: Int

  /// A real number as the nearest code, halves to even; what lies beyond the grid becomes its end.
  public func code(_ real: Float) -> Int {
    let code = (real / scale).rounded(.toNearestOrEven) + Float(zeroPoint)
    if !(code > Float(low)) { return low }  // what is no number, too
    return code < Float(high) ? Int(code) : high
  }

  /// The real number that a code stands for.
  public func real(_ code: Int) -> Float {
    return scale * Float(code - zeroPoint)
  }

  /// All of a tensor, as it lies in memory.
  public func codes<T: FixedWidthInteger>(_ reals: [Float]) -> [T] {
    return reals.map { T(code($0)) }
  }

  /// And back.
  public func reals<T: FixedWidthInteger>(_ codes: [T]) -> [Float] {
    return codes.map { real(Int($0)) }
  }
}

/// Inputs, outputs and classes of tiny * / net; written by kquant 1.2.3.
public enum TinyNetModelCodes {
  /// Input 0, image: [1, 2, 2].
  public static let input0 = TinyNetModelEdge(
    scale: Float(bitPattern: 0x3e800000), zeroPoint: 3, low: -128, high: 127)

  /// Output 0, kind: [1, 2].
  public static let output0 = TinyNetModelEdge(
    scale: Float(bitPattern: 0x3e800000), zeroPoint: 3, low: -128, high: 127)

  /// Names of the classes, one for each value of the last axis of the first output, or for each position that it holds.
  public static let labels: [String] = [
    "left",
    "the \"right\"",
  ]

  private static let scale = Float(bitPattern: 0x3f000000)
  private static let mean: [Float] = [Float(bitPattern: 0x3f800000), Float(bitPattern: 0x40000000)]
  private static let std: [Float] = [Float(bitPattern: 0x3f800000), Float(bitPattern: 0x40800000)]

  /// Raw values (bytes of a camera, samples of a sensor) as what the first input takes: (raw * scale - mean) / std.
  public static func normalized(_ raw: [Float]) -> [Float] {
    return raw.indices.map { (raw[$0] * scale - mean[$0 % mean.count]) / std[$0 % std.count] }
  }

  /// SHA-256 of the file that all this was written for.
  public static let sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}
