"""What an image asks of the GPUs and the driver of a node, decided from the GPU code that is in it."""
