"""The built-in world: question families, a vocabulary, pretraining text, and a small base model
learnt from it.

What is built in, by pretraining text alone: without a fitting instruction the model bluffs (answers
at once, at random); a fitting strategy phrase switches on a chain of steps that mostly ends right;
reflection prompts are answered with a mutated instruction whose new phrase is drawn uniformly (no
oracle). What is left to the algorithm: which phrases help which questions, and moving the chain
into the plain prompt. The link from family to strategy lives in this package only.

`config.world.size` chooses the language of all that text: see `languages.py`.
"""
