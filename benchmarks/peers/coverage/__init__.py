"""Of how many models a tool makes a file of integers alone: layers, keras.applications, architectures."""
