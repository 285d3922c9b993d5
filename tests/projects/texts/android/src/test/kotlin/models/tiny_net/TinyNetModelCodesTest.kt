package models.tiny_net

import org.junit.Assert.assertEquals
import org.junit.Test

/** Codes on the phone are those of the desk; runs on the JVM. */
class TinyNetModelCodesTest {
    private fun check(edge: TinyNetModelEdge, real: Float, code: Int, back: Float) {
        assertEquals("the code of $real", code, edge.code(real))
        assertEquals("what $code stands for", back, edge.real(code), 0.0f)
        val bytes = edge.codes(floatArrayOf(real))
        assertEquals(code, edge.codeOf(bytes[0]))
        assertEquals(back, edge.reals(bytes)[0], 0.0f)
    }

    @Test
    fun input0() {
        val edge = TinyNetModelCodes.input0
        check(edge, 1.125f, 7, 1.0f)
        check(edge, -40.0f, -128, -32.75f)
        assertEquals("what is no number", -128, edge.code(Float.NaN))
    }

    @Test
    fun output0() {
        val edge = TinyNetModelCodes.output0
        check(edge, 1.125f, 7, 1.0f)
        check(edge, -40.0f, -128, -32.75f)
        assertEquals("what is no number", -128, edge.code(Float.NaN))
    }

    @Test
    fun rawValues() {
        val of0 = floatArrayOf(-1.0f, -0.5f)
        val from0 = TinyNetModelCodes.normalized(FloatArray(2) { 0.0f })
        of0.indices.forEach { assertEquals(of0[it], from0[it], 0.0f) }
        val of1 = floatArrayOf(-0.5f, -0.375f)
        val from1 = TinyNetModelCodes.normalized(FloatArray(2) { 1.0f })
        of1.indices.forEach { assertEquals(of1[it], from1[it], 0.0f) }
        val of2 = floatArrayOf(62.5f, 15.375f)
        val from2 = TinyNetModelCodes.normalized(FloatArray(2) { 127.0f })
        of2.indices.forEach { assertEquals(of2[it], from2[it], 0.0f) }
        val of3 = floatArrayOf(126.5f, 31.375f)
        val from3 = TinyNetModelCodes.normalized(FloatArray(2) { 255.0f })
        of3.indices.forEach { assertEquals(of3[it], from3[it], 0.0f) }
    }

    @Test
    fun theFileIsNamed() {
        assertEquals(64, TinyNetModelCodes.SHA256.length)
    }
}
