"""A built-in toy world: question families, a vocabulary, pretraining text, and a small base model.

The pretraining text teaches the model three things. Without a suitable instruction it bluffs: it
answers immediately and at random. A suitable strategy phrase makes it write a chain of steps that
mostly leads to the right answer. It answers a reflection prompt with a mutated instruction, whose
new phrase is drawn uniformly and without knowledge of the questions.

Two things are left to the algorithm: finding the phrases that help each question, and moving the
chain into the plain prompt. Only this package knows which strategy belongs to which family.

`config.world.size` chooses the language of the text; see `languages.py`.
"""
