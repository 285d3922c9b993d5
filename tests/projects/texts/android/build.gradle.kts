// A module of an app: include(":tiny_net") in its settings.gradle.kts, and have the versions of both plugins there.
plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "models.tiny_net"
    compileSdk = 36

    defaultConfig {
        minSdk = 24 // LiteRT's own
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }

    // the model is mapped into memory as it lies in the package
    androidResources { noCompress += "tflite" }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin { jvmToolchain(17) }

dependencies {
    api("com.google.ai.edge.litert:litert:2.3.0")
    implementation("com.google.ai.edge.litert:litert-gpu:2.3.0") // leave it out where nothing runs on GPUs

    testImplementation("junit:junit:4.13.2")
    androidTestImplementation("androidx.test.ext:junit:1.2.1")
    androidTestImplementation("androidx.test:runner:1.6.2")
}
