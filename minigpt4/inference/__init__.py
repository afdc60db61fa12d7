"""Loading a model by name on the right device, and answering questions about many images."""
