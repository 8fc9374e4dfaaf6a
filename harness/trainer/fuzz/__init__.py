"""`lora-drift fuzz`: jobs drawn from all that the trainer reads, resolved by it and by us, and compared.

`grammar.py` draws, `parser.py` is the trainer's side (in its own environment), `settings.py` compares and shrinks,
`corpus.py` keeps what is worth keeping, which tests replay without a trainer.
"""
