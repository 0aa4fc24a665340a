"""Adapters (LoRA and its kin) on linear layers, through PEFT: add, train, switch off, merge, save and load.

Knows linear layers, not StarCoder: a `Layout` says under which names and in which order the file keeps the
rows of each. Layers that the file keeps in parts are taken apart while the adapter is on, so that every kind
of adapter is exactly what PEFT makes of transformers' model. `Tables` say where the rows of tokens are that
learn beside it.
"""
