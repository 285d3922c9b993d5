package models.tiny_net

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import com.google.ai.edge.litert.Accelerator
import java.security.MessageDigest
import kotlin.math.abs
import kotlin.math.log10
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/**
 * What the model gives on this device, beside what LiteRT gave on the desk (XNNPACK's kernels of a PC) for the same inputs.
 *
 * Kernels of two processors may round a code otherwise, by one step in an operator, and such steps add up. So what is
 * asked is the power of each output over that of its difference: 20.0 dB, as `kquant.verify` asks of a runtime that
 * rounds otherwise. A wrong scale or a wrong layer leaves less than 10. What it found on the desk, against the model:
 * - kind on litert: 99.0% of codes equal, 1 steps at most, 40.0 dB
 *
 * On another accelerator: -Pandroid.testInstrumentationRunnerArguments.accelerator=GPU
 */
@RunWith(AndroidJUnit4::class)
class TinyNetModelGoldenTest {
    private class Agreement(private val name: String) {
        private var power = 0.0
        private var noise = 0.0
        private var largest = 0.0

        /** Of one value, what was wanted and what came. */
        fun add(wanted: Double, got: Double) {
            power += wanted * wanted
            noise += (wanted - got) * (wanted - got)
            largest = maxOf(largest, abs(wanted - got))
        }

        fun check() {
            val decibels = if (noise == 0.0) Double.POSITIVE_INFINITY else 10 * log10(power / noise)
            assertTrue("$name: $decibels dB, at most $largest", decibels >= 20.0)
        }
    }

    private val instrumentation = InstrumentationRegistry.getInstrumentation()

    @Test
    fun theFileIsTheOneThatWasWritten() {
        val bytes = instrumentation.targetContext.assets.open("tiny_net.tflite").use { it.readBytes() }
        val hash = MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
        assertEquals(TinyNetModelCodes.SHA256, hash)
    }

    @Test
    fun agreesWithTheDesk() {
        val text = instrumentation.context.assets.open("tiny_net_golden.json").bufferedReader().use { it.readText() }
        val calls = JSONObject(text).getJSONArray("calls")
        val named = InstrumentationRegistry.getArguments().getString("accelerator", "CPU")
        val agreements = listOf(
            Agreement("kind"),
            Agreement("place"),
        )
        TinyNetModel.create(instrumentation.targetContext, listOf(Accelerator.valueOf(named))).use { model ->
            for (number in 0 until calls.length()) {
                val call = calls.getJSONObject(number)
                compare(model, call.getJSONArray("inputs"), call.getJSONArray("outputs"), agreements)
            }
        }
        agreements.forEach { it.check() }
    }

    private fun compare(model: TinyNetModel, inputs: JSONArray, outputs: JSONArray, agreements: List<Agreement>) {
        val got = model.runCodes(
            inputs.getJSONArray(0).let { ByteArray(it.length()) { n -> it.getInt(n).toByte() } },
            inputs.getJSONArray(1).let { FloatArray(it.length()) { n -> it.getDouble(n).toFloat() } },
        )
        val wanted0 = outputs.getJSONArray(0).let { ByteArray(it.length()) { n -> it.getInt(n).toByte() } }
        val got0 = got.kind
        assertEquals(wanted0.size, got0.size)
        for (n in wanted0.indices) {
            val edge = TinyNetModelCodes.output0
            val both = listOf(wanted0[n], got0[n]).map { edge.real(edge.codeOf(it)).toDouble() }
            agreements[0].add(both[0], both[1])
        }
        val wanted1 = outputs.getJSONArray(1).let { FloatArray(it.length()) { n -> it.getDouble(n).toFloat() } }
        val got1 = got.place
        assertEquals(wanted1.size, got1.size)
        for (n in wanted1.indices) {
            val both = listOf(wanted1[n], got1[n]).map { it.toDouble() }
            agreements[1].add(both[0], both[1])
        }
    }
}
