package models.tiny_net

import android.content.Context
import android.util.Log
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.BuiltinNpuAcceleratorProvider
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.LiteRtException
import com.google.ai.edge.litert.Status

/**
 * tiny * / net on LiteRT, written by kquant 1.2.3. For one thread at a time.
 *
 * @property accelerator what runs the model.
 */
class TinyNetModel private constructor(
    private val environment: Environment,
    private val compiled: CompiledModel,
    val accelerator: Accelerator,
) : AutoCloseable {
    private val inputBuffers = compiled.createInputBuffers()
    private val outputBuffers = compiled.createOutputBuffers()

    /** What comes out, as real numbers. */
    class Outputs(
        val kind: FloatArray,
        val place: FloatArray,
    )

    /** What comes out, in the file's own types. */
    class OutputCodes(
        val kind: ByteArray,
        val place: FloatArray,
    )

    /**
     * Runs the model on real numbers.
     *
     * @param image image, 4 values: [1, 2, 2], the last axis fastest.
     * @param speed speed, 1 values: [1, 1], the last axis fastest.
     */
    fun run(image: FloatArray, speed: FloatArray): Outputs {
        val results_ = this.runCodes(
            TinyNetModelCodes.input0.codes(image),
            speed,
        )
        return Outputs(
            TinyNetModelCodes.output0.reals(results_.kind),
            results_.place,
        )
    }

    /** The same in the file's own types. */
    fun runCodes(image: ByteArray, speed: FloatArray): OutputCodes {
        require(image.size == 4) { "input 'image' takes 4 values, and got ${image.size}" }
        require(speed.size == 1) { "input 'speed' takes 1 values, and got ${speed.size}" }
        this.inputBuffers[0].writeInt8(image)
        this.inputBuffers[1].writeFloat(speed)
        this.compiled.run(this.inputBuffers, this.outputBuffers)
        return OutputCodes(
            this.outputBuffers[0].readInt8(),
            this.outputBuffers[1].readFloat(),
        )
    }

    /** Gives back what LiteRT holds. */
    override fun close() {
        (inputBuffers + outputBuffers).forEach { it.close() }
        compiled.close()
        environment.close()
    }

    companion object {
        private const val TAG = "TinyNetModel"
        private const val ASSET = "tiny_net.tflite"

        /**
         * Compiles the model for the first accelerator that takes it, and says in the log which one that is and why those
         * before it did not.
         *
         * @param accelerators in the order to try, such as `listOf(Accelerator.NPU, Accelerator.GPU, Accelerator.CPU)`.
         * @throws LiteRtException no accelerator takes it.
         */
        @JvmStatic
        @JvmOverloads
        fun create(context: Context, accelerators: List<Accelerator> = listOf(Accelerator.CPU)): TinyNetModel {
            require(accelerators.isNotEmpty()) { "name an accelerator" }
            accelerators.dropLast(1).forEach { accelerator ->
                try {
                    return compiled(context, accelerator)
                } catch (e: LiteRtException) {
                    Log.w(TAG, "$accelerator does not take the model, the next one is tried: ${e.message}")
                }
            }
            return compiled(context, accelerators.last())
        }

        // One accelerator at a time: where the CPU stands beside it, LiteRT falls back without a word.
        private fun compiled(context: Context, accelerator: Accelerator): TinyNetModel {
            val npu = accelerator == Accelerator.NPU
            val environment =
                if (npu) Environment.create(BuiltinNpuAcceleratorProvider(context)) else Environment.create()
            try {
                val available = environment.getAvailableAccelerators()
                Log.i(TAG, "accelerators of this device: $available")
                if (npu && accelerator !in available) {
                    throw LiteRtException(Status.ErrorUnsupported, "this device has no NPU that LiteRT knows")
                }
                val options = CompiledModel.Options(accelerator)
                val made = CompiledModel.create(context.assets, ASSET, options, environment)
                // LiteRT adds the CPU to an NPU, and its Kotlin API does not tell who runs what
                Log.i(TAG, if (npu) "runs on the NPU, with the CPU for what that leaves" else "runs on the $accelerator")
                return TinyNetModel(environment, made, accelerator)
            } catch (e: LiteRtException) {
                environment.close()
                throw e
            }
        }
    }
}
