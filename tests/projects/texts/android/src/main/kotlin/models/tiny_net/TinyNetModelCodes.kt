package models.tiny_net

import kotlin.math.round

/** An input or output of integers: real = scale * (code - zeroPoint). */
class TinyNetModelEdge(val scale: Float, val zeroPoint: Int, val low: Int, val high: Int) {
    /** A real number as the nearest code, halves to even; what lies beyond the grid becomes its end. */
    fun code(real: Float): Int {
        val code = round(real / scale) + zeroPoint
        if (!(code > low)) return low // what is no number, too
        return if (code < high) code.toInt() else high
    }

    /** The real number that a code stands for. */
    fun real(code: Int): Float = scale * (code - zeroPoint)

    /** All of a tensor, as it lies in memory. */
    fun codes(reals: FloatArray): ByteArray = ByteArray(reals.size) { code(reals[it]).toByte() }

    /** And back. */
    fun reals(codes: ByteArray): FloatArray = FloatArray(codes.size) { real(codeOf(codes[it])) }

    /** A byte of memory as a code: the bytes of Kotlin have a sign. */
    fun codeOf(byte: Byte): Int = if (low < 0) byte.toInt() else byte.toInt() and 0xff
}

/** Inputs, outputs and classes of tiny * / net; written by kquant 1.2.3. */
object TinyNetModelCodes {
    /** Input 0, image: [1, 2, 2]. */
    val input0 = TinyNetModelEdge(0.25f, 3, -128, 127)

    /** Output 0, kind: [1, 2]. */
    val output0 = TinyNetModelEdge(0.25f, 3, -128, 127)

    /** Names of the classes, one for each value of the last axis of the first output, or for each position that it holds. */
    val labels: List<String> = listOf(
        "left",
        "the \"right\"",
    )

    private val mean = floatArrayOf(1.0f, 2.0f)
    private val std = floatArrayOf(1.0f, 4.0f)

    /** Raw values (bytes of a camera, samples of a sensor) as what the first input takes: (raw * scale - mean) / std. */
    fun normalized(raw: FloatArray): FloatArray =
        FloatArray(raw.size) { (raw[it] * 0.5f - mean[it % mean.size]) / std[it % std.size] }

    /** SHA-256 of the file that all this was written for. */
    const val SHA256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}
