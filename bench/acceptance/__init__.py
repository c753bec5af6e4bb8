"""The acceptance of the engine on a GPU: `make gpu-acceptance`, in parts that go on where they were stopped.

`parts` lists what is done, one module a part; `driver` runs it step by step; `store` keeps what each step found; `report` makes the
results file and the table of it. Needs nothing that the engine's own tests on a GPU do not: no network, no reader of images.
"""
