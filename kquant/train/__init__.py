"""Training methods: one file each; they put transforms of kernels into a model, which then trains as any other."""
