"""Plain torch, one file an op: what every kernel is measured against, and what runs where there is no kernel.

Readable first. Each function takes the same positional arguments as the registered op ``torch.ops.case.<name>``
and is differentiated by autograd itself; there is no hand-written backward here to get wrong.
"""
