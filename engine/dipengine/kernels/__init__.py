"""Native ops for Python, each beside its plain twin: the oracle of the tests and the fallback where nothing is built.

`backend` decides between both, `pool` holds the threads, `philox` needs no PyTorch, `masked_mse` and `adam` do.
"""
