"""The kernels, a file per operation. Importing one imports triton; nothing else of the package does."""
