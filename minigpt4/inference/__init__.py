"""A model by its name, on the right device, answering about many images."""
