"""How well a model sees and speaks: composed scenes, captions of photographs, failures of generated text."""
