"""The live lab: real parts for qpivot's tests.

Nothing in here knows the C code: the lab starts QEMU, guests and storage,
looks at them on its own and so can judge what qpivot did.  A piece that is
started here waits for a condition with a deadline, never for a time, and is
gone when the test ends, whatever way it ends.
"""
