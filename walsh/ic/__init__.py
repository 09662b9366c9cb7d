"""The Internet Computer: exact instruction counts of any Wasm module, and a replica in miniature to run canisters on.

:func:`walsh.ic.metering.instrument` makes a module count what a replica would charge it; ``walsh.ic.replica`` runs
canisters under such counts; ``walsh.ic.costs`` is the table both charge by.
"""
